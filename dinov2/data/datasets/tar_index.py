"""Where each image lies in uncompressed tar archives (pax, GNU and ustar), so that it can be read alone."""

import os
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dinov2.data.datasets.base import IMAGE_SUFFIXES
from dinov2.data.errors import DatasetError
from dinov2.data.index_cache import Watched
from dinov2.data.index_names import NameColumns
from dinov2.data.index_table import IndexTable
from dinov2.data.skipped import DAMAGED, Skipped

COMPRESSION = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
BLOCK = 512  # bytes


class Member(NamedTuple):
    """One image of an archive."""

    name: str
    offset: int  # bytes from the start of the archive to the content
    size: int  # bytes; -1 where the archive ends within it


def index_tars(paths: Sequence[str]) -> IndexTable:
    """List the images of archives: columns shard, offset and size (n,), and their names.

    Raises:
        DatasetError: see `tar_members`.
    """
    watched, names, skipped, damaged = Watched(), NameColumns(), Skipped(), Skipped(DAMAGED)
    shards, offsets, sizes = array("I"), array("q"), array("q")
    for number, path in enumerate(
        tqdm(paths, desc="indexing shards", unit=" shards", delay=2, leave=False, disable=None)
    ):
        watched.add(path)
        for member in tar_members(path, skipped, damaged):
            names.append(member.name)
            shards.append(number)
            offsets.append(member.offset)
            sizes.append(member.size)
    blob, bounds = names.columns()
    columns: dict[str, NDArray] = {
        "names": blob,
        "bounds": bounds,
        "shard": np.frombuffer(shards, np.uint32),
        "offset": np.frombuffer(offsets, np.int64),
        "size": np.frombuffer(sizes, np.int64),
        **watched.columns(),
    }
    return IndexTable(columns, {"kind": "Tar", "shards": list(paths), **skipped.facts(), **damaged.facts()})


def tar_members(path: str, skipped: Skipped, damaged: Skipped) -> list[Member]:
    """The images of one archive, in its order; of members with the same name the last counts, as for `tar -x`.

    Where the archive was cut in the middle, its complete members are listed, and the cut one, where an image, with
    size -1; the archive is added to `damaged`, and so is one with a damaged header, or without its end. Folders, hidden
    files and other kinds of file are passed over; earlier members of a name, and links that are named as images, are
    added to `skipped`.

    Raises:
        DatasetError: a compressed archive, none at all, an empty file, or a name that leads out of the archive.
    """
    with open(path, "rb") as file:
        start = file.read(BLOCK)
    for magic, name in COMPRESSION.items():
        if start.startswith(magic):
            raise DatasetError(
                f"Tar: {path} is compressed ({name}); its tiles can only be read at random from an uncompressed tar. "
                "Decompress it (images are compressed already)"
            )
    end = os.path.getsize(path)
    found: dict[str, Member] = {}
    cut = ""
    try:
        with tarfile.open(path, "r:") as archive:
            for info in _complete_headers(archive):
                if info.isfile() and info.offset_data + info.size > end:
                    cut = info.name
                if not _is_image(info.name) or info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    skipped.add(f"{path}/{info.name}", "no regular file")
                    continue
                _refuse_escape(path, info.name)
                if found.pop(info.name, None):  # the later one, in its place
                    skipped.add(f"{path}/{info.name}", "an earlier member of this name")
                found[info.name] = Member(info.name, info.offset_data, -1 if info.name == cut else info.size)
            stopped = archive.offset
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise DatasetError(f"Tar: {path} is no tar archive: {error}") from error
    if cut or not _is_end(path, stopped):
        usable = sum(member.size >= 0 for member in found.values())
        where = f"cut off within {cut}" if cut else f"cut off or damaged at byte {stopped:,}"
        damaged.add(path, f"the archive is {where}; the {usable} complete images before that are used")
    return list(found.values())


def _complete_headers(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members until the end, or until the archive is cut off or damaged; then `archive.offset` says where."""
    place = -1
    while True:
        try:
            info = archive.next()
        except (tarfile.TarError, ValueError, OverflowError):
            if place < 0:  # not even one member
                raise
            return
        if info is None:
            return
        if info.offset <= place or info.size < 0:  # a forged size may lead back, for ever
            archive.offset = info.offset
            return
        place = info.offset
        archive.members.clear()  # type: ignore[attr-defined]  # it would keep every one of millions
        yield info


def _is_end(path: str, offset: int) -> bool:
    """Whether the empty block that ends every archive is there; tarfile stops silently at a damaged header, too."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(BLOCK) == bytes(BLOCK)


def _is_image(name: str) -> bool:
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(IMAGE_SUFFIXES) and not base.startswith(".")


def _refuse_escape(path: str, name: str) -> None:
    if name.startswith("/") or ".." in name.split("/"):
        raise DatasetError(
            f"Tar: {path} has a member {name!r}: names must be relative and without '..'; pack the archive again"
        )
