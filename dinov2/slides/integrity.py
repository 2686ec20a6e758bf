"""Telling a file that was cut off while it was copied, before hours are spent on its first half."""

from pathlib import Path

from dinov2.slides.errors import SlideError
from dinov2.slides.tiff_reader import TIFF_SUFFIXES

_TIFF_BASED = (".svs", ".ndpi", ".scn", ".bif", *TIFF_SUFFIXES)


def check_whole(path: Path) -> None:
    """Check that every tile that a TIFF-based slide's directories list lies within the file.

    A copy that was interrupted opens without complaint where the directories come first, and fails at the first
    missing tile. Other formats, and files that tifffile cannot parse, pass: their readers say what is wrong.

    Raises:
        SlideError: the file ends before its last tile.
    """
    if path.suffix.lower() not in _TIFF_BASED:
        return
    import tifffile

    size = path.stat().st_size
    try:
        with tifffile.TiffFile(path) as file:
            end = max(
                (int(offset) + int(count))
                for page in file.pages
                for offset, count in zip(page.aspage().dataoffsets, page.aspage().databytecounts, strict=True)
            )
    except Exception:  # another kind of file, or damage that the reader reports in its own words
        return
    if end > size:
        raise SlideError(f"{path}: cut off: its tiles reach to byte {end:,}, but the file has {size:,}. Copy it again.")
