"""A run's numbers: `metrics.jsonl`, tensorboard and the progress bar. A full disk costs lines, never the run."""

import json
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from dinov2.logging.scalars import ScalarEvents
from dinov2.utils.files import write_text

logger = logging.getLogger("dinov2")


class MetricsLog:
    """Writes one line a step to `metrics.jsonl` and `tensorboard/`, and shows the losses on a progress bar with ETA."""

    def __init__(self, folder: Path, first_step: int, last_step: int) -> None:
        self.path = folder / "metrics.jsonl"
        _forget_from(self.path, first_step)
        self._file = open(self.path, "a", buffering=1)  # noqa: SIM115  (closed by __exit__)
        self._events = ScalarEvents(folder / "tensorboard", first_step)
        self._failing: set[str] = set()
        self._bar = tqdm(
            total=last_step,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30,  # a log file does not need every step
            desc="pretraining",
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record the values of a step; what is NaN or infinite becomes null, which JSON has a word for."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._attempt("metrics.jsonl", lambda: self._write_line(json.dumps({"iteration": step, **finite})))
        self._attempt("tensorboard", lambda: self._events.add(step, values))
        losses = {name.removesuffix("_loss").removesuffix("_crops"): v for name, v in values.items() if "loss" in name}
        self._bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()}, refresh=False)

    def advance(self) -> None:
        """Move the progress bar by one step."""
        self._bar.update()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.close()
        self._attempt("metrics.jsonl", self._file.close)
        self._attempt("tensorboard", self._events.close)

    def _write_line(self, line: str) -> None:
        # What was cut off by a failure must not run into this line.
        self._file.write("\n" * ("metrics.jsonl" in self._failing) + line + "\n")

    def _attempt(self, sink: str, action: Callable[[], object]) -> None:
        """Do something with a sink; say when it begins to fail, and when it works again."""
        try:
            action()
        except OSError as error:
            if sink not in self._failing:
                logger.error("%s cannot be written: %s; training goes on without it", self.path.parent / sink, error)
            self._failing.add(sink)
        else:
            if sink in self._failing:
                logger.warning("%s is written again; some steps are missing", self.path.parent / sink)
            self._failing.discard(sink)


def _forget_from(path: Path, step: int) -> None:
    """Drop the lines of steps that are about to be run again after a restart."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["iteration"] < step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):  # a line cut by a kill
            continue
    write_text(path, "".join(f"{line}\n" for line in kept))
