"""Two trainers must not write into one run folder: the first holds a lock on it, which ends with its process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dinov2.distributed.env import all_reduce_max, rank
from dinov2.utils.errors import RunFolderError
from dinov2.utils.file_lock import acquire_lock

LOCK_FILE = ".lock"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which is created, on rank 0 for all processes of the run.

    Raises:
        RunFolderError: another run holds it (where, as far as it is known); on all processes.
    """
    descriptor, holder = acquire_lock(folder / LOCK_FILE) if rank() == 0 else (None, "")
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
