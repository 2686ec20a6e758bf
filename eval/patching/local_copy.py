"""Copying a slide to a local disk before it is read: network storage bears one long read better than many short."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def local_copy(path: Path, folder: Path | None) -> Iterator[Path]:
    """Yield the path of a copy of a slide in a local folder, removed afterwards; the path itself without a folder.

    An MRXS slide's folder of data, which has the file's name, is copied along.
    """
    if folder is None:
        yield path
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"slide-{os.getpid()}-", dir=folder) as private:
        copy = Path(private) / path.name
        shutil.copyfile(path, copy)
        data = path.with_suffix("")
        if path.suffix.lower() == ".mrxs" and data.is_dir():
            shutil.copytree(data, copy.with_suffix(""))
        yield copy
