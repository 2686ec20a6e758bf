"""A peer that trains in a Python environment of its own, asked for one step at a time."""

import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from dinov2.utils.errors import UserError

READY = "ready"


class PeerSteps:
    """Runs `program` with `python` and the JSON of `case`; every `step()` is one training step there."""

    def __init__(self, python: Path, program: Path, case: Mapping[str, Any]) -> None:
        """Start the peer and wait until it is ready.

        Raises:
            UserError: it cannot be started (its last words are in the message).
        """
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (open while the peer runs)
        command = [str(python), str(program), json.dumps(dict(case))]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
            )
        except OSError as error:
            raise UserError(f"{python}: {error}; give the Python interpreter of the peer's environment") from error
        self._wait()

    def step(self) -> None:
        """Take one step.

        Raises:
            UserError: the peer has failed.
        """
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        self._wait()

    def __enter__(self) -> "PeerSteps":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the peer."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _wait(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != READY:
            self._process.kill()
            self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().strip()[-500:]
            raise UserError(f"{self._process.args}: the peer ended: {last}")  # type: ignore[str-bytes-safe]
