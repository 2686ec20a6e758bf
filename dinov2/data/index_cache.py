"""Where listings are kept between runs, and when they are made anew.

A listing of at least `MIN_KEPT` items is written to `index/` in the cache folder (`DINOV2_CACHE_DIR`, by default
`~/.cache/dinov2-pathology`), or, where that cannot be written, in the system's folder for temporary files. Smaller ones
take a moment to make and are not kept.

The rule: each data set names the folders or files that it listed, with their times of change (and files' sizes). A kept
listing holds while all of these are the same, and none changed within the two seconds before the listing began or after
that (a clock may be so coarse that such a change leaves no trace). `refresh=always` lists anew whatever the rule says;
`refresh=never` trusts a kept listing unseen, which saves a look at every folder of a slow file system.
"""

import contextlib
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinov2.data.errors import DatasetError
from dinov2.data.index_names import NameColumns, name_at
from dinov2.data.index_table import IndexTable
from dinov2.ops.native import NativeError, cache_folder
from dinov2.utils.suggest import did_you_mean

logger = logging.getLogger("dinov2")

VERSION = 3
MIN_KEPT = 20_000
SETTLED_NS = 2_000_000_000
REFRESH = ("auto", "always", "never")
ListAll = Callable[[], IndexTable]


class Watched:
    """The folders or files whose changes make a listing stale, with their state when they were listed."""

    def __init__(self) -> None:
        self._began = time.time_ns()
        self._names = NameColumns()
        self._states: list[int] = []

    def add(self, path: str) -> os.stat_result:
        """Take note of a folder or file just before it is read, and return its status; raises `OSError`."""
        status = os.stat(path)
        self._names.append(path)
        self._states.append(_state(status))
        return status

    def columns(self) -> dict[str, NDArray]:
        """The columns that `unchanged` reads."""
        blob, bounds = self._names.columns()
        states = np.array([*self._states, self._began], dtype=np.int64)
        return {"watched": blob, "watched_bounds": bounds, "watched_states": states}


def unchanged(table: IndexTable) -> bool:
    """Whether everything that a listing watches is as it was, by the rule above."""
    blob, bounds = table.columns["watched"], table.columns["watched_bounds"]
    *states, began = table.columns["watched_states"].tolist()
    for index, state in enumerate(states):
        try:
            status = os.stat(name_at(blob, bounds, index))
        except OSError:
            return False
        if _state(status) != state or status.st_mtime_ns > began - SETTLED_NS:
            return False
    return True


def kept_or_listed(
    kind: str, key: Sequence[str], refresh: str, size: Callable[[IndexTable], int], make: ListAll
) -> IndexTable:
    """Return the kept listing of a data set where there is a good one, else list and keep it.

    Args:
        kind: of the data set; begins the file's name.
        key: what tells this listing from others, such as the root.
        refresh: auto, always or never, see above.
        size: number of items of a listing.
        make: lists; its columns include those of `Watched`.

    Raises:
        DatasetError: an unknown `refresh`, no folder to keep a large listing in, or what `make` raises.
    """
    if refresh not in REFRESH:
        raise DatasetError(f"{kind}: refresh={refresh}{did_you_mean(refresh, REFRESH)}")
    digest = hashlib.sha256(repr((VERSION, kind, *key)).encode()).hexdigest()
    name = f"{kind.lower()}-{digest[:24]}.safetensors"
    folders = _folders()
    if refresh != "always":
        for folder in folders:
            table = _open(folder / name)
            if table is not None and (refresh == "never" or unchanged(table)):
                return table
    table = make()
    if size(table) < MIN_KEPT:
        return table
    failures = []
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            kept = table.save(folder / name)
        except OSError as error:
            failures.append(str(error))
            continue
        logger.info("%s: listing of %s items kept in %s", kind, f"{size(table):,}", folder / name)
        return kept
    raise DatasetError(
        f"{kind}: no folder to keep the listing in ({'; '.join(failures)}); set DINOV2_CACHE_DIR to one that can be "
        "written"
    )


def _state(status: os.stat_result) -> int:
    """One number for the time of change and the size."""
    key = f"{status.st_mtime_ns} {status.st_size}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little", signed=True)


def _folders() -> list[Path]:
    """Folders to look for listings and to keep them in, the best first."""
    folders = []
    with contextlib.suppress(NativeError):  # a user without a home
        folders.append(cache_folder() / "index")
    spare = Path(tempfile.gettempdir()) / f"dinov2-pathology-{os.getuid()}"
    # Everybody can make a folder there, and a listing says which files to read: nobody else's is trusted.
    if not os.path.lexists(spare) or (spare.lstat().st_uid == os.getuid() and not spare.is_symlink()):
        folders.append(spare / "index")
    return folders


def _open(path: Path) -> IndexTable | None:
    try:
        return IndexTable.open(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("the kept listing %s is made anew: %s", path, error)
        return None
