"""Two trainers must not write into one run folder: the first holds a lock on it, which ends with its process."""

import fcntl
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dinov2.distributed.env import all_reduce_max, rank
from dinov2.utils.errors import RunFolderError

logger = logging.getLogger("dinov2")
LOCK_FILE = ".lock"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which is created, on rank 0 for all processes of the run.

    Raises:
        RunFolderError: another run holds it (where, as far as it is known); on all processes.
    """
    descriptor, holder = _acquire(folder / LOCK_FILE) if rank() == 0 else (None, "")
    taken = bool(all_reduce_max(torch.tensor(int(bool(holder)))))
    try:
        if taken:
            raise RunFolderError(
                f"output folder {str(folder)!r} is in use by another training process{holder}; end it, or give another "
                "--output-dir"
            )
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _acquire(path: Path) -> tuple[int | None, str]:
    """Return an open locked file, or who holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        return None, f" ({holder})" if holder else " (which one is not known)"
    except OSError as error:
        logger.warning("%s cannot be locked (%s): two runs in one folder would not be noticed", path, error)
        return descriptor, ""
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
    return descriptor, ""
