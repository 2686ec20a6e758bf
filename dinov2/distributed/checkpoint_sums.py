"""Sizes and checksums of a checkpoint's files, by which damage shows that raises no error when it is loaded."""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ABOUT = "checkpoint.json"
Sums = dict[str, dict[str, int | str]]  # of each file: `bytes`, and `crc32` in hexadecimal
_PIECE = 1 << 22  # bytes read at a time


def file_sums(folder: Path, names: Iterable[str]) -> Sums:
    """Return the size and CRC-32 of some files of a folder: accidents show in it, at several times a disk's speed.

    Raises:
        OSError: one of them cannot be read.
    """
    return {name: _sum(folder / name) for name in names}


def shard_names(folder: Path, rank: int) -> list[str]:
    """Return the files of a checkpoint that the process `rank` has written with torch.distributed.checkpoint."""
    return sorted(path.name for path in folder.glob(f"__{rank}_*.distcp"))


def find_damage(folder: Path, part: int, parts: int) -> str:
    """Compare one of several equal parts of a checkpoint's files with `checkpoint.json`.

    Returns:
        What is wrong, with the file's name; '' for nothing, or where checksums were not yet written.
    """
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_bytes())
        recorded: Sums = about.get("files", {})
        for name in sorted(recorded)[part::parts]:
            found = _sum(folder / name)
            if found != recorded[name]:
                return f"{name} has {_describe(found)}, but {ABOUT} says {_describe(recorded[name])}"
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:  # it may be any other JSON by now
        return f"{ABOUT} or a file that it names cannot be read: {type(error).__name__}: {error}"
    return ""


def _sum(path: Path) -> dict[str, int | str]:
    size, crc = 0, 0
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            size += len(piece)
            crc = zlib.crc32(piece, crc)
    return {"bytes": size, "crc32": f"{crc:08x}"}


def _describe(sums: dict[str, int | str]) -> str:
    return f"{sums['bytes']} bytes with checksum {sums['crc32']}"
