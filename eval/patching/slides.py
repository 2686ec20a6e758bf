"""Which slides a job takes: a folder or files, a part of them for each of several jobs, and the pixel sizes given."""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from dinov2.slides.companions import companions
from dinov2.slides.open import SLIDE_SUFFIXES, slide_name
from dinov2.utils.suggest import did_you_mean
from eval.errors import EvalError

T = TypeVar("T")

NAME_COLUMNS = ("slide_id", "slide", "wsi")  # CLAM's, ours, TRIDENT's


@dataclass(frozen=True)
class Shard:
    """Every `count`-th slide, from number `index` on."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read `i/n` with 0 <= i < n.

        Raises:
            EvalError: anything else.
        """
        first, _, second = text.partition("/")
        if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
            raise EvalError(f"--shard {text}: it must be i/n with i from 0 to n - 1, e.g. 0/4.")
        return cls(int(first), int(second))


def find_slides(places: Iterable[Path], out: Path | None = None) -> list[Path]:
    """Return the slides in files and folders (at any depth), sorted by name.

    Linked folders are followed, each real one once. A link that leads nowhere counts as a slide: it fails, and is not
    lost. Parts of a slide (the JPEGs of a VMS) are none.

    Args:
        places: slides and folders.
        out: output folder, whose pictures are no slides where it lies in one of the folders.

    Raises:
        EvalError: a place does not exist, a folder has no slide, or two slides have one name.
    """
    found: dict[str, Path] = {}
    for place in places:
        if not place.exists():
            raise EvalError(f"--slides {place}: no such file or folder.")
        here = [place] if place.is_file() else _without_parts(sorted(_slides_below(place, out)))
        if not here:
            raise EvalError(f"--slides {place}: no slide in this folder; looked for {', '.join(SLIDE_SUFFIXES)}.")
        for path in here:
            other = found.setdefault(slide_name(path), path)
            if os.path.realpath(other) != os.path.realpath(path):
                raise EvalError(
                    f"--slides: {other} and {path} would both be written as {slide_name(path)}. "
                    "Rename one, or process their folders with two values of --out."
                )
    return [found[name] for name in sorted(found)]


def take_shard(slides: Sequence[T], shard: Shard | None) -> list[T]:
    """Return the slides of one of several jobs."""
    return list(slides) if shard is None else list(slides[shard.index :: shard.count])


def read_table(path: Path, option: str) -> list[dict[str, str]]:
    """Read a CSV whose first known name column becomes `slide_id`.

    Raises:
        EvalError: no file, no such column, no rows, or a row without a slide.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, restval=""))
    except (OSError, UnicodeDecodeError) as error:
        raise EvalError(f"{option} {path}: it cannot be read ({error}).") from error
    columns = [column for column in (rows[0] if rows else {}) if column]
    name = next((column for column in NAME_COLUMNS if column in columns), None)
    if name is None:
        raise EvalError(
            f"{option} {path}: it needs a column slide_id and at least one row; it has "
            f"{', '.join(columns) or 'no rows'}."
        )
    for number, row in enumerate(rows, start=2):
        row["slide_id"] = (row.get(name) or "").strip()
        if not row["slide_id"]:
            raise EvalError(f"{option} {path}, line {number}: no slide in the column {name}.")
    return rows


def match_slide(given: str, slides: Mapping[str, Path], where: str) -> str:
    """Return the name of the slide that a table means by its file's name, or by its name without suffix.

    Raises:
        EvalError: there is no such slide.
    """
    for name in (given, slide_name(given)):
        if name in slides:
            return name
    raise EvalError(f"{where}: no slide is named {given!r}{did_you_mean(slide_name(given), list(slides))}.")


def read_mpps(path: Path, slides: Mapping[str, Path]) -> dict[str, float]:
    """Read pixel sizes from a CSV with the columns slide_id (or wsi, slide) and mpp; slides of other jobs are skipped.

    Raises:
        EvalError: no column mpp, a value that is no positive number, two values of one slide, or none of these slides.
    """
    found: dict[str, float] = {}
    for number, row in enumerate(read_table(path, "--mpp-csv"), start=2):
        if "mpp" not in row:
            raise EvalError(f"--mpp-csv {path}: it needs a column mpp, micrometres per px of level 0.")
        name = row["slide_id"] if row["slide_id"] in slides else slide_name(row["slide_id"])
        if name in slides and row["mpp"].strip():
            where = f"--mpp-csv {path}, line {number}"
            value = parse_mpp(row["mpp"], where)
            if found.setdefault(name, value) != value:
                raise EvalError(f"{where}: {name} has {value:g} here and {found[name]:g} above. Keep one of the rows.")
    if not found:
        raise EvalError(
            f"--mpp-csv {path}: no row gives the pixel size of one of the {len(slides)} slides "
            f"({', '.join(slides)[:80]}). "
            "Its slide_id must be the slide's file name, with its suffix or without."
        )
    return found


def parse_mpp(text: str, where: str) -> float:
    """Return a positive number.

    Raises:
        EvalError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise EvalError(f"{where}: mpp = {text!r}; it must be a positive number of micrometres.")
    return value


def _slides_below(folder: Path, out: Path | None) -> Iterator[Path]:
    ours = set() if out is None else {out.resolve() / name for name in ("masks", "tiles")}
    seen = set[tuple[int, int]]()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        status, place = os.stat(here), Path(here)
        if (status.st_dev, status.st_ino) in seen or place.resolve() in ours:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (place / name for name in files if name.lower().endswith(SLIDE_SUFFIXES) and name[0] != "."):
            if path.is_file() or path.is_symlink():
                yield path


def _without_parts(slides: list[Path]) -> list[Path]:
    """Leave out pictures that are parts of a slide."""
    tables = [path for path in slides if path.suffix.lower() in (".vms", ".vmu") and path.is_file()]
    parts = {part for path in tables for part in companions(path)}
    return [path for path in slides if path not in parts]


def _raise(error: OSError) -> NoReturn:
    raise error
