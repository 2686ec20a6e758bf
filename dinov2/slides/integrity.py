"""Telling a file that was cut off while it was copied, before hours are spent on its first half."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinov2.slides.errors import SlideError
from dinov2.slides.tiff_reader import TIFF_SUFFIXES

_TIFF_BASED = (".svs", ".ndpi", ".scn", ".bif", *TIFF_SUFFIXES)
# Bytes of the types of TIFF 6.0, section 2, and of BigTIFF (16 to 18).
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def check_whole(path: Path) -> None:
    """Check that all directories of a TIFF-based slide, and every tile that they list, lie within the file.

    A copy that was interrupted opens without complaint where the first directories are there: it fails at the first
    missing tile, or passes for a slide with fewer levels. Other formats, and files that tifffile cannot parse, pass:
    their readers say what is wrong.

    Raises:
        SlideError: the file ends before its last directory or tile.
    """
    if path.suffix.lower() not in _TIFF_BASED:
        return
    import tifffile

    size, end = path.stat().st_size, 0
    try:
        with tifffile.TiffFile(path) as file:
            for end in _ends(file):
                if end > size:
                    break
    except Exception:  # another kind of file, or damage that the reader reports in its own words
        return
    if end > size:
        raise SlideError(f"{path}: cut off: it reaches to byte {end:,} or further, but has {size:,}. Copy it again.")


def _ends(file: Any) -> Iterator[int]:
    """Yield where the directories, their values and their tiles end; the first beyond the file is the last."""
    yield from _directory_ends(file, file.pages.first.offset)
    for page in file.pages:
        for part in (page.aspage(), *(level.aspage() for level in page.aspage().pages or ())):
            for offset in part.subifds or ():
                yield from _directory_ends(file, offset)
            for offset, count in zip(part.dataoffsets, part.databytecounts, strict=True):
                yield int(offset) + int(count)


def _directory_ends(file: Any, offset: int) -> Iterator[int]:
    """Yield where each directory of a chain and the values outside it end (TIFF 6.0, section 2; BigTIFF; NDPI)."""
    handle, tiff, seen = file.filehandle, file.tiff, set[int]()
    while offset and offset not in seen:
        seen.add(offset)
        yield offset + tiff.tagnosize
        handle.seek(offset)
        (count,) = struct.unpack(tiff.tagnoformat, handle.read(tiff.tagnosize))
        yield offset + tiff.tagnosize + count * tiff.tagsize + tiff.offsetsize
        entries = handle.read(count * tiff.tagsize)
        (offset,) = struct.unpack(tiff.offsetformat, handle.read(tiff.offsetsize))
        if not file.is_ndpi:  # which keeps the upper halves of its values' places elsewhere
            yield from _value_ends(tiff, entries)


def _value_ends(tiff: Any, entries: bytes) -> Iterator[int]:
    width = tiff.offsetsize  # 4, or 8 in a BigTIFF
    layout = struct.Struct(f"{tiff.byteorder}HH{'I' if width == 4 else 'Q'}{'I' if width == 4 else 'Q'}")
    for _, kind, count, place in layout.iter_unpack(entries):
        length = count * _TYPE_SIZES.get(kind, 0)
        if length > width:
            yield place + length
