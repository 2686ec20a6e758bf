"""A run's numbers: `metrics.jsonl`, tensorboard and the progress bar."""

import json
import sys
from pathlib import Path
from types import TracebackType

from tensorboardX import SummaryWriter
from tqdm import tqdm

from dinov2.utils.files import write_text


class MetricsLog:
    """Writes one line a step to `metrics.jsonl` and `tensorboard/`, and shows the losses on a progress bar with ETA."""

    def __init__(self, folder: Path, first_step: int, last_step: int) -> None:
        self.path = folder / "metrics.jsonl"
        _forget_from(self.path, first_step)
        self._file = open(self.path, "a", buffering=1)  # noqa: SIM115  (closed by __exit__)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)
        self._bar = tqdm(
            total=last_step,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30,  # a log file does not need every step
            desc="pretraining",
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record the values of a step."""
        self._file.write(json.dumps({"iteration": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        losses = {name.removesuffix("_loss").removesuffix("_crops"): v for name, v in values.items() if "loss" in name}
        self._bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()}, refresh=False)

    def advance(self) -> None:
        """Move the progress bar by one step."""
        self._bar.update()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.close()
        self._file.close()
        self._board.close()


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
