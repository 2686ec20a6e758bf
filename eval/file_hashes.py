"""sha256 of files, kept between runs: the patches of a task may be tens of gigabytes, which take minutes to hash."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from dinov2.utils.files import write_text
from eval.splits import Sample

logger = logging.getLogger(__name__)

FILE = "hashes.json"
# A file that has changed so recently could change again within one tick of its file system's clock.
SETTLED_NS = 2_000_000_000


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes: its identity, whatever its name and time stamp."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sample_hashes(
    samples: Sequence[Sample], hashes: Callable[[Path], str], bar: tqdm
) -> tuple[dict[str, str], dict[str, str]]:
    """Sample -> sha256 of its patches, and of its expression; moves the bar by both files of each."""
    found: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for s in samples:
        for by_sample, path in zip(found, (s.patches, s.expression), strict=True):
            by_sample[s.name] = hashes(path)
            bar.update()
    return found


class FileHashes:
    """`file_hash`, but a file of the same path, size and time of change is not read again.

    What is known is read from `<folder>/hashes.json`; `save` puts what is new there.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._known = self._read()
        self._new: dict[str, list[int | str]] = {}  # path -> size, time of change in ns, sha256

    def __call__(self, path: Path) -> str:
        """sha256 of a file's bytes, remembered or read."""
        place, before = str(path.resolve()), path.stat()
        facts = [before.st_size, before.st_mtime_ns]
        known = self._new.get(place) or self._known.get(place)
        if known is not None and known[:2] == facts:
            return str(known[2])
        found = file_hash(path)
        after = path.stat()
        unchanged = [after.st_size, after.st_mtime_ns] == facts
        if unchanged and time.time_ns() - before.st_mtime_ns > SETTLED_NS:
            self._new[place] = [*facts, found]
        return found

    def save(self) -> None:
        """Write what is new, beside what other runs have written meanwhile; a warning where that is not possible."""
        if not self._new:
            return
        try:
            write_text(self._path, json.dumps({**self._read(), **self._new}, indent=0) + "\n")
        except OSError as error:
            logger.warning(
                "%s: hashes of files cannot be kept (%s); the next run reads the files again", self._path, error
            )

    def _read(self) -> dict[str, list[int | str]]:
        try:
            found = json.loads(self._path.read_text())
            return {path: [int(size), int(changed), str(sha)] for path, (size, changed, sha) in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):  # none yet, or damaged: then files are read again
            return {}
