"""Locks by which several runs can share an output folder or a cache."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dinov2.utils.file_lock import acquire_lock
from eval.errors import EvalError


class BusyError(EvalError):
    """Another process works on the same."""


@contextmanager
def alone(path: Path, what: str, patience: float | None = None) -> Iterator[None]:
    """Hold a lock file, which is made with its folder and removed at the end.

    Args:
        path: the lock file.
        what: is locked, for the message.
        patience: seconds to wait while another process has it; see `acquire_lock`.

    Raises:
        BusyError: another process has it.
        OSError: it cannot be made.
    """
    while True:
        descriptor, holder = acquire_lock(path, patience)
        if descriptor is None:
            raise BusyError(f"another process{holder} works on {what}: run this again when that has ended")
        if is_file_at(descriptor, path):
            break
        os.close(descriptor)  # its holder has removed it meanwhile
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def is_file_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
