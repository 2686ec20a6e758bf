"""All files below a folder with certain suffixes, in an order that does not depend on the file system."""

import errno
import os
from array import array
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dinov2.data.errors import DatasetError
from dinov2.data.index_cache import Watched, kept_or_listed
from dinov2.data.index_names import NameColumns, name_at
from dinov2.data.index_table import IndexTable
from dinov2.data.skipped import DAMAGED, Skipped, warn_of_skipped


class FileListing:
    """The files below `root`, at any depth, sorted by name folder by folder, as an `IndexTable`.

    Names that start with a dot are skipped. Linked folders are followed, but each real folder is read once, under the
    first of its names in sorted order, so links that lead back do no harm. These, links that lead nowhere, and what has
    such a suffix and is no file are left out with a warning. A file reached under two names, and equal
    content, count twice.

    Attributes:
        facts: those of `Skipped`; links that lead nowhere are among the damaged, too.

    Args:
        kind: of data set, for messages and the kept listing's name.
        root: the folder.
        suffixes: in lower case; a name's case does not matter.
        refresh: see `index_cache`.

    Raises:
        DatasetError: `root` is missing or no folder, cannot be read, or holds no such file.
    """

    def __init__(self, kind: str, root: str, suffixes: tuple[str, ...], refresh: str = "auto") -> None:
        self.root = os.path.abspath(os.path.expanduser(root))
        if not os.path.isdir(self.root):
            what = "is not a folder" if os.path.exists(self.root) else "does not exist"
            raise DatasetError(f"{kind}:root={root}: {self.root} {what}")
        self._table = kept_or_listed(
            kind,
            (self.root, *suffixes),
            refresh,
            lambda table: len(table.columns["folder"]),
            lambda: _list(kind, self.root, suffixes),
        )
        self.facts = self._table.facts
        warn_of_skipped(f"{kind}:root={root}", self.facts)
        if not len(self):
            raise DatasetError(f"{kind}:root={root}: no file below {self.root}; looked for {', '.join(suffixes)}")

    def __len__(self) -> int:
        return len(self._table.columns["folder"])

    def name(self, index: int) -> str:
        """Name of file `index` relative to the root."""
        columns = self._table.columns
        name = name_at(columns["names"], columns["bounds"], index)
        return os.path.join(name_at(columns["folders"], columns["folder_bounds"], int(columns["folder"][index])), name)

    def path(self, index: int) -> str:
        """Absolute name of file `index`."""
        return os.path.join(self.root, self.name(index))


def _list(kind: str, root: str, suffixes: tuple[str, ...]) -> IndexTable:
    watched, skipped, damaged = Watched(), Skipped(), Skipped(DAMAGED)
    try:
        files = _files(root, "", suffixes, watched, set(), skipped, damaged)
        shown = tqdm(files, desc=f"listing {root}", unit=" files", delay=2, leave=False, disable=None)
        table = listing_table(kind, root, shown, watched)
    except OSError as error:
        raise DatasetError(f"{kind}:root={root} cannot be listed: {error}") from error
    table.facts |= skipped.facts() | damaged.facts()
    return table


def listing_table(kind: str, root: str, files: Iterable[tuple[str, str]], watched: Watched) -> IndexTable:
    """The columns of a listing.

    Args:
        kind: of data set.
        root: the folder.
        files: folder, relative to the root, and name of each file; a folder's files one after another.
        watched: the folders, complete once `files` is at its end.
    """
    folders, names, folder_of = NameColumns(), NameColumns(), array("I")
    last = None
    for folder, name in files:
        if folder != last:
            folders.append(folder)
            last = folder
        names.append(name)
        folder_of.append(len(folders) - 1)
    folder_blob, folder_bounds = folders.columns()
    blob, bounds = names.columns()
    columns: dict[str, NDArray] = {
        "names": blob,
        "bounds": bounds,
        "folder": np.frombuffer(folder_of, np.uint32),
        "folders": folder_blob,
        "folder_bounds": folder_bounds,
        **watched.columns(),
    }
    return IndexTable(columns, {"kind": kind, "root": root})


def _files(
    root: str,
    below: str,
    suffixes: tuple[str, ...],
    watched: Watched,
    seen: set[tuple[int, int]],
    skipped: Skipped,
    damaged: Skipped,
) -> Iterator[tuple[str, str]]:
    """Folder, relative to the root, and name of each file."""
    status = watched.add(os.path.join(root, below))
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        skipped.add(os.path.join(root, below), "a folder that is read under another name")
        return
    seen.add(identity)
    with os.scandir(os.path.join(root, below)) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in visible:
        if _is(entry.is_dir):
            yield from _files(root, os.path.join(below, entry.name), suffixes, watched, seen, skipped, damaged)
        elif (wanted := entry.name.lower().endswith(suffixes)) and _is(entry.is_file):
            yield below, entry.name
        elif entry.is_symlink() and not os.path.exists(entry.path):
            skipped.add(entry.path, "a link that leads nowhere")
            damaged.add(entry.path, "a link that leads nowhere")
        elif wanted:
            skipped.add(entry.path, "no regular file")


def _is(question: Callable[[], bool]) -> bool:
    """The answer of a directory entry; a link that leads to itself is nothing."""
    try:
        return question()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise
