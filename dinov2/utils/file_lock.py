"""A lock on a file, which ends with the process that holds it, however that ends."""

import fcntl
import logging
import os
import platform
import time
from pathlib import Path

logger = logging.getLogger("dinov2")
PATIENCE_SECONDS = 5.0  # workers of a killed process hold its lock until they notice


def acquire_lock(path: Path, patience: float | None = None) -> tuple[int | None, str]:
    """Lock a file, which is made with its folder and holds who has it.

    Waits for `patience` seconds, by default `PATIENCE_SECONDS`, while another process has it.
    Where the file system has no locks a warning says so, and the file counts as locked.

    Returns:
        The open file's descriptor, to be closed at the end, and an empty string; or None and who holds the lock, in
        brackets. Raises `OSError` where the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    deadline = time.monotonic() + (PATIENCE_SECONDS if patience is None else patience)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = os.read(descriptor, 200).decode(errors="replace").strip()
                os.close(descriptor)
                return None, f" ({holder})" if holder else " (which one is not known)"
            time.sleep(0.2)
        except OSError as error:
            logger.warning("%s cannot be locked (%s): two processes in one folder would not be noticed", path, error)
            return descriptor, ""
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
    return descriptor, ""
