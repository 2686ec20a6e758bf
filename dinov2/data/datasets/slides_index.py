"""Which patches the slides of a manifest have: every slide and its coordinate file are opened once, and checked."""

import csv
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dinov2.data.errors import DatasetError
from dinov2.data.index_cache import Watched
from dinov2.data.index_names import NameColumns
from dinov2.data.index_table import IndexTable
from dinov2.slides.coordinates import Coordinates, check_slide
from dinov2.slides.coordinates_file import find_coordinates, read_coordinates
from dinov2.slides.errors import CoordinatesError, SlideError
from dinov2.slides.integrity import check_whole
from dinov2.slides.open import open_slide, slide_name

# CLAM's, TRIDENT's and our own names for the column of slides.
_COLUMNS = ("slide", "slide_id", "wsi", "path")
_OPENERS = 16  # threads: on network storage, opening is waiting

T = TypeVar("T")


def index_slides(manifest: Path, folder: Path) -> IndexTable:
    """List the patches of a manifest's slides.

    Columns: the slides' paths, `ends` (slides,) and, in level-0 px, `x` and `y` (patches,). The facts have `geometry`:
    the values of a `Geometry` for each slide.

    Raises:
        DatasetError: the manifest is unusable, two rows are the same slide or share a coordinate file, a row's slide is
            missing or cut off, its coordinates are missing, or the two do not fit each other (the row is named).
    """
    watched, names = Watched(), NameColumns()
    _watch(watched, manifest, (manifest, folder, folder / "patches"))
    rows = _rows(manifest)
    with ThreadPoolExecutor(_OPENERS) as pool:
        files = list(pool.map(lambda row: _coordinate_file(row[0], folder, row[1]), rows))
        _refuse_repeated("coordinate file", files, rows)
        for (slide, where), file in zip(rows, files, strict=True):
            _watch(watched, where, (slide, file))
            names.append(str(slide))
        opened = list(_shown(pool.map(lambda row, file: _open_entry(row[0], file, row[1]), rows, files), len(rows)))
    blob, bounds = names.columns()
    corners = np.concatenate([coordinates.coords for coordinates in opened]).astype(np.int32)  # (patches, 2)
    columns: dict[str, NDArray] = {
        "names": blob,
        "bounds": bounds,
        "ends": np.cumsum([len(coordinates.coords) for coordinates in opened], dtype=np.int64),
        "x": np.ascontiguousarray(corners[:, 0]),
        "y": np.ascontiguousarray(corners[:, 1]),
        **watched.columns(),
    }
    geometry = [astuple(coordinates.geometry) for coordinates in opened]
    return IndexTable(columns, {"kind": "Slides", "manifest": str(manifest), "geometry": geometry})


def _watch(watched: Watched, where: object, paths: Iterable[Path]) -> None:
    try:
        for path in paths:
            if path.exists():
                watched.add(str(path))
    except OSError as error:
        raise DatasetError(f"{where}: {error}") from error


def _shown(items: Iterator[T], total: int) -> Iterable[T]:
    return tqdm(items, desc="opening slides", total=total, unit=" slides", delay=2, leave=False, disable=None)


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


def _open_entry(path: Path, file: Path, where: str) -> Coordinates:
    """The patches of a slide."""
    try:
        check_whole(path)
        with open_slide(path) as slide:
            coordinates = read_coordinates(file, slide)
            check_slide(coordinates, slide)
    except (SlideError, CoordinatesError) as error:
        raise DatasetError(f"{where}: {error}") from error
    return coordinates
