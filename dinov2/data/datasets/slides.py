"""Patches of whole slides, read from the slides themselves at the places that coordinate files name."""

import csv
import os
import resource
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinov2.data.datasets.registry import register_dataset
from dinov2.data.errors import BadTileError, DatasetError
from dinov2.slides.coordinates import Geometry, check_slide, read_patch
from dinov2.slides.coordinates_file import find_coordinates, read_coordinates
from dinov2.slides.errors import CoordinatesError, SlideError
from dinov2.slides.handles import OpenSlides
from dinov2.slides.open import open_slide, slide_name

# CLAM's, TRIDENT's and our own names for the column of slides.
_COLUMNS = ("slide", "slide_id", "wsi", "path")

_OPENERS = 16  # threads
_FILES_SHARE = 4  # at most this part of the files that a process may open are slides


@dataclass(frozen=True)
class _Entry:
    """One slide: where it is, and how its patches are read."""

    path: Path
    geometry: Geometry


@register_dataset("Slides")
class Slides:
    """Patches of the slides of a manifest, in its order; implements `TileDataset`, `NamedTiles` and `PlacedTiles`.

    Args:
        manifest: CSV with a column `slide` (or `slide_id`, `wsi`, `path`): files, absolute or relative to the
            manifest's folder.
        coords: folder of coordinate files, `<slide>.h5` of `python -m eval.patches` or CLAM, `<slide>_patches.h5` of
            TRIDENT, there or in its folder `patches`.
        open: slides that a process keeps open at once, by default 256, of which each takes a file and the memory of its
            directory; never more than a quarter of the files that the system lets a process open (`ulimit -n`), nor
            more than 16 that OpenSlide cannot read (OME-TIFF, PNG, JPEG). Samples come from all slides in turn: with
            fewer than there are, most of them wait for a slide to be opened.

    Raises:
        DatasetError: the manifest is unusable, two rows are the same slide or share a coordinate file, a row's slide or
            coordinates are missing or do not fit each other (the row is named), or there is no patch at all.
    """

    def __init__(self, manifest: str, coords: str, open: str = "256") -> None:
        self.manifest = Path(manifest).expanduser().absolute()
        folder = Path(coords).expanduser().absolute()
        if not folder.is_dir():
            raise DatasetError(f"Slides:coords={coords}: {folder} is no folder. Make it: python -m eval.patches.")
        if not open.isdecimal() or int(open) < 1:
            raise DatasetError(f"Slides:open={open}: it must be a whole number, 1 or more.")
        rows = _rows(self.manifest)
        with ThreadPoolExecutor(_OPENERS) as pool:  # each slide is opened once; on network storage that is waiting
            files = list(pool.map(lambda row: _coordinate_file(row[0], folder, row[1]), rows))
            _refuse_repeated("coordinate file", files, rows)
            opened = list(pool.map(lambda row, file: _open_entry(row[0], file, row[1]), rows, files))
        self._entries = [entry for entry, _ in opened]
        self._coords = np.concatenate([coords for _, coords in opened])  # (patches, 2) level-0 px
        self._ends = np.cumsum([len(coords) for _, coords in opened]).tolist()
        if not self._ends[-1]:
            raise DatasetError(f"Slides:manifest={manifest}: none of its {len(self._entries)} slides has a patch.")
        files_allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._slides = OpenSlides(max(min(int(open), files_allowed // _FILES_SHARE), 1))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, index: int) -> tuple[_Entry, int, int]:
        """Slide and corner (x, y) of patch `index`; raises `IndexError`."""
        if not 0 <= index < len(self):
            raise IndexError(f"tile {index} is not in 0 .. {len(self) - 1}")
        x, y = self._coords[index].tolist()
        return self._entries[bisect_right(self._ends, index)], x, y

    def path(self, index: int) -> str:
        """Slide, and the patch's corner in level-0 px: `a.svs at (512, 1024)`."""
        entry, x, y = self._locate(index)
        return f"{entry.path} at ({x}, {y})"

    def name(self, index: int) -> str:
        """Slide and corner of tile `index` in level-0 px: `a/512_1024`."""
        entry, x, y = self._locate(index)
        return f"{slide_name(entry.path)}/{x}_{y}"

    def place(self, index: int) -> tuple[int, int]:
        """Corner (x, y) of tile `index` in level-0 px."""
        return self._locate(index)[1:]

    def decode(self, index: int) -> Tensor:
        """Tile `index` as (3, H, W) uint8 RGB; raises `BadTileError`."""
        entry, x, y = self._locate(index)
        try:
            pixels = read_patch(self._slides.get(entry.path), entry.geometry, x, y)  # (H, W, 3)
        except SlideError as error:
            raise BadTileError(self.path(index), str(error)) from error
        except Exception as error:  # a damaged slide makes libraries raise nearly anything
            raise BadTileError(self.path(index), f"{type(error).__name__}: {error}") from error
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _rows(manifest: Path) -> list[tuple[Path, str]]:
    """Return the slides of a manifest, and for each the row in words."""
    try:
        with open(manifest, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"Slides:manifest={manifest}: it cannot be read ({error}).") from error
    columns = list(rows[0]) if rows else []
    column = next((name for name in _COLUMNS if name in columns), None)
    if column is None:
        found = ", ".join(str(name) for name in columns) or "no row"
        raise DatasetError(f"Slides:manifest={manifest}: it needs a column slide and at least one row; it has {found}.")
    named = []
    for number, row in enumerate(rows, start=2):
        where, cell = f"{manifest}, line {number}", (row[column] or "").strip()
        path = manifest.parent / os.path.expanduser(cell)  # an absolute path stays as it is
        if not cell or not os.path.isfile(path):
            raise DatasetError(
                f"{where}: slide {cell!r} does not exist ({path}). Correct the path, which is relative to the "
                "manifest's folder, or remove the row."
            )
        named.append((path, where))
    _refuse_repeated("slide", [path for path, _ in named], named)
    return named


def _refuse_repeated(what: str, files: list[Path], rows: list[tuple[Path, str]]) -> None:
    """Raise `DatasetError` where two rows lead to one real file."""
    lines: dict[str, str] = {}
    for file, (slide, where) in zip(files, rows, strict=True):
        before = lines.setdefault(os.path.realpath(file), where)
        if before != where:
            raise DatasetError(
                f"{where}: {slide} has the same {what}, {file}, as {before.rpartition(', ')[2]}; its patches would be "
                "drawn twice. Remove one row, or give slides of the same name a manifest and a folder of their own."
            )


def _coordinate_file(path: Path, folder: Path, where: str) -> Path:
    try:
        return find_coordinates(folder, slide_name(path))
    except CoordinatesError as error:
        raise DatasetError(f"{where}: {error}") from error


def _open_entry(path: Path, file: Path, where: str) -> tuple[_Entry, NDArray[np.int32]]:
    """A slide, and its patches (N, 2) as level-0 px."""
    try:
        with open_slide(path) as slide:
            coordinates = read_coordinates(file, slide)
            check_slide(coordinates, slide)
    except (SlideError, CoordinatesError) as error:
        raise DatasetError(f"{where}: {error}") from error
    return _Entry(path, coordinates.geometry), coordinates.coords.astype(np.int32)
