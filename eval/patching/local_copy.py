"""Copying a slide to a local disk before it is read: network storage bears one long read better than many short."""

import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dinov2.slides.companions import companions
from eval.patching.locks import BusyError, alone


@contextmanager
def run_cache(folder: Path | None) -> Iterator[Path | None]:
    """Yield a folder of this run's own in a cache folder, removed afterwards; None without a cache.

    What runs that were killed have left in the cache is removed first.
    """
    if folder is None:
        yield None
        return
    for lock in folder.glob("run-*.lock"):
        with suppress(BusyError, OSError), alone(lock, "a cache", patience=0):  # not the cache of a living run
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
    private = folder / f"run-{secrets.token_hex(8)}"
    with alone(private.with_suffix(".lock"), "a cache"):
        try:
            private.mkdir()
            yield private
        finally:
            shutil.rmtree(private, ignore_errors=True)


@contextmanager
def local_copy(path: Path, folder: Path | None) -> Iterator[Path]:
    """Yield the path of a copy of a slide in a local folder, removed afterwards; the path itself without a folder."""
    if folder is None:
        yield path
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"slide-{os.getpid()}-", dir=folder) as private:
        yield _copy(path, Path(private))


def shared_copy(path: Path, folder: Path) -> Path:
    """Return the path of a copy that several processes share: the first makes it, the others wait for it.

    `remove_shared_copy` removes it.
    """
    place = _shared_folder(path, folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.with_name(f"{place.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            partial = place.with_name(f"{place.name}.partial")  # of a process that died, if it exists
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _copy(path, partial)
            partial.rename(place)
    return place / path.name


def remove_shared_copy(path: Path, folder: Path) -> None:
    """Remove a copy; processes that have it open keep what they have."""
    with suppress(OSError):  # the slide itself is gone, say
        place = _shared_folder(path, folder)
        for copy in (place, place.with_name(f"{place.name}.partial")):
            shutil.rmtree(copy, ignore_errors=True)
        place.with_name(f"{place.name}.lock").unlink(missing_ok=True)


def _shared_folder(path: Path, folder: Path) -> Path:
    status = path.stat()  # a slide that was replaced must not meet the copy of its predecessor
    identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    return folder / f"slide-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _copy(path: Path, folder: Path) -> Path:
    """Copy a slide with the further files that it consists of."""
    copy = folder / path.name
    shutil.copyfile(path, copy)
    for other in companions(path):
        place = folder / other.relative_to(path.parent)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(other, place)
    return copy
