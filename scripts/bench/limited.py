"""Commands with a time limit that also ends what they have started themselves."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType


@dataclass(frozen=True)
class Result:
    """How a command ended: its exit code, None where it was ended early, and what it printed."""

    code: int | None
    output: str
    seconds: float

    @property
    def last_line(self) -> str:
        """The last line that was printed, or that the time ran out."""
        lines = self.output.strip().splitlines()
        ended = [] if self.code is not None else [f"out of time after {self.seconds:.0f} s"]
        return "; ".join([*ended, *lines[-1:]])


class Limited:
    """A command that runs from now on; `finish` waits for its end, or ends it when its time is up.

    As a context manager it ends the command, and all that it has started, however the block is left.
    """

    def __init__(self, command: Sequence[str], seconds: float, environment: Mapping[str, str], folder: Path) -> None:
        self._begin = time.monotonic()
        self._seconds = seconds
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115  (open while the command runs)
        self._process = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=folder,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its children can be ended with it
        )

    def __enter__(self) -> "Limited":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._output.close()

    def finish(self) -> Result:
        """Return how the command ended."""
        code: int | None = None
        try:
            code = self._process.wait(max(0.0, self._begin + self._seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:  # also after an interrupt, which its own session does not receive
            self._end()
        self._output.seek(0)
        return Result(code, self._output.read(), time.monotonic() - self._begin)

    def _end(self) -> None:
        with suppress(ProcessLookupError):  # nobody of its session is left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
