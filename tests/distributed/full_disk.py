"""A disk that is full when a test wants it to be."""

import errno
import subprocess
from contextlib import contextmanager

import pytest

MIB = 2**20


class SmallDisk:
    """A mounted disk of its own: `fill` takes all its room, `free` gives it back."""

    def __init__(self, folder):
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self):
        """Take every byte that is left."""
        with open(self._filler, "ab", buffering=0) as file:
            for size in (MIB // 16, 1024, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self):
        """Give back what `fill` has taken."""
        self._filler.unlink()


@contextmanager
def small_disk(folder, mib):
    """Provide a disk of so many MiB mounted at `folder`; skip where this process may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no small disk to fill: {error}")
    if done.returncode:
        pytest.skip(f"no small disk to fill (root may mount one): {done.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
