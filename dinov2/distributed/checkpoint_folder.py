"""The names in a folder of checkpoints, and the moves that make one appear whole or not at all."""

import contextlib
import os
import shutil
from pathlib import Path

from dinov2.utils.files import replacing

LATEST = "latest"


def iterations(folder: Path) -> list[int]:
    """Return the iterations that have a checkpoint, in ascending order."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit() and path.is_dir())


def unfinished(folder: Path, iteration: int) -> Path:
    """Return the folder in which a checkpoint is written before it gets its name."""
    return folder / f".{iteration}.tmp"


def remove_unfinished(folder: Path) -> None:
    """Remove what saves have left that were killed."""
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def remove(folder: Path, iteration: int) -> None:
    """Remove a checkpoint: first its name, so that being killed meanwhile leaves no part of it that has one."""
    doomed = unfinished(folder, iteration)
    with contextlib.suppress(OSError):
        replace_folder(folder / str(iteration), doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def make_empty(folder: Path) -> None:
    """Create a folder, without what it held before."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def replace_folder(source: Path, target: Path) -> None:
    """Give a folder another name, in place of the folder that has it."""
    shutil.rmtree(target, ignore_errors=True)
    os.replace(source, target)


def publish(temporary: Path, target: Path) -> None:
    """Flush a finished checkpoint to disk, rename it to `target`, and point `latest` to it."""
    sync_folder(temporary)
    os.replace(temporary, target)
    sync_folder(target.parent)
    link = target.parent / f".{LATEST}"
    # Nothing here depends on the link, and some file systems have none.
    with contextlib.suppress(OSError):
        link.unlink(missing_ok=True)
        link.symlink_to(target.name)
        os.replace(link, target.parent / LATEST)


def share_file(source: Path, target: Path) -> None:
    """Let `target` be the same file as `source`, or a copy where the file system has no links."""
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def sync_folder(folder: Path) -> None:
    """Flush a folder's files and its entries to disk."""
    for path in [*(p for p in folder.iterdir() if p.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
