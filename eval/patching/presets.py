"""Segmentation parameters under CLAM's names (Lu et al. 2021, arXiv 2004.09666), from preset and process-list CSVs."""

import csv
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinov2.utils.suggest import did_you_mean
from eval.errors import EvalError
from eval.patching.grid import CONTOUR_TESTS

PRESETS = Path(__file__).resolve().parents[2] / "configs" / "presets"
NONE = "none"
_LARGEST = 2**31 - 1  # of OpenCV's integers


@dataclass(frozen=True)
class Preset:
    """One row of a preset.

    Attributes:
        seg_level: level that is segmented; -1 takes the one nearest to a downsample of 64.
        sthresh: saturation (0..255) above which a px is tissue.
        mthresh: side of the median filter, px of the level, odd.
        close: side of the morphological closing, px of the level; 0 for none.
        use_otsu: threshold by Otsu's method instead of `sthresh`.
        a_t: smallest area of tissue, without its holes, in squares of 512 x 512 level-0 px.
        a_h: smallest area of a hole, in the same unit.
        max_n_holes: largest number of holes of a contour; the largest are kept.
        vis_level: level of the overview picture; -1 as for `seg_level`.
        line_thickness: of the contours in the overview, level-0 px.
        white_thresh: mean saturation below which a patch is blank (see `--drop-blank`).
        black_thresh: mean of each colour below which a patch is black (see `--drop-blank`).
        use_padding: keep patches that reach over the slide's edge.
        contour_fn: which points of a patch must lie in the contour, see `eval.patching.grid`.
        keep_ids: contours to keep, by number in the order found; all where empty.
        exclude_ids: contours to leave out.
    """

    seg_level: int = -1
    sthresh: int = 15
    mthresh: int = 11
    close: int = 2
    use_otsu: bool = False
    a_t: float = 1
    a_h: float = 1
    max_n_holes: int = 2
    vis_level: int = -1
    line_thickness: int = 50
    white_thresh: float = 5
    black_thresh: float = 50
    use_padding: bool = True
    contour_fn: str = "four_pt"
    keep_ids: tuple[int, ...] = ()
    exclude_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.mthresh < 1 or self.mthresh % 2 == 0:
            raise EvalError(f"mthresh {self.mthresh}: the median filter's side must be odd and positive, e.g. 7 or 11.")
        if not 0 <= self.sthresh <= 255:
            raise EvalError(f"sthresh {self.sthresh}: saturation lies in 0..255.")
        for name in ("close", "a_t", "a_h", "max_n_holes"):
            if getattr(self, name) < 0:
                raise EvalError(f"{name} {getattr(self, name)}: it must be 0 or more.")
        if self.contour_fn not in CONTOUR_TESTS:
            raise EvalError(f"contour_fn {self.contour_fn!r} is unknown{did_you_mean(self.contour_fn, CONTOUR_TESTS)}.")

    def cells(self) -> dict[str, Any]:
        """Return the columns of a CSV."""
        values = dataclasses.asdict(self)
        for name in ("keep_ids", "exclude_ids"):
            values[name] = ",".join(map(str, values[name])) or NONE
        return values

    def updated(self, cells: Mapping[str, str], where: str) -> "Preset":
        """Return a copy with the cells of a CSV or the command line; empty cells change nothing.

        Raises:
            EvalError: an unknown column, or a value that cannot be read; `where` is named.
        """
        changes: dict[str, Any] = {}
        for name, cell in cells.items():
            if name not in _PARSERS:
                raise EvalError(f"{where}: no parameter is named {name!r}{did_you_mean(name, list(_PARSERS))}.")
            if cell.strip():
                try:
                    changes[name] = _PARSERS[name](cell.strip())
                except ValueError as error:
                    raise EvalError(f"{where}: {name} = {cell!r}: {error}") from error
        try:
            return dataclasses.replace(self, **changes)
        except EvalError as error:
            raise EvalError(f"{where}: {error}") from error


def load_preset(name: str) -> Preset:
    """Read a preset.

    Args:
        name: `biopsy`, `resection`, `tcga`, or the path of a CSV with the same columns.

    Raises:
        EvalError: no such preset, a missing or unknown column, or a value that cannot be read.
    """
    path = Path(name) if name.endswith(".csv") else PRESETS / f"{name}.csv"
    if not path.is_file():
        known = sorted(file.stem for file in PRESETS.glob("*.csv"))
        raise EvalError(f"preset {name!r}: no such file{did_you_mean(name, known)}. A path must end in .csv.")
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise EvalError(f"preset {path}: it has no row of values below the names of the columns.")
    missing = [column for column in _PARSERS if rows[0].get(column) is None]
    if missing:
        raise EvalError(f"preset {path}: columns missing: {', '.join(missing)}. See {PRESETS / 'biopsy.csv'}.")
    return Preset().updated({k: v for k, v in rows[0].items() if k is not None}, f"preset {path}")


def _integer(cell: str) -> int:
    value = _real(cell)  # a spreadsheet writes 8 as 8.0
    if value != int(value) or abs(value) > _LARGEST:
        raise ValueError(f"it must be a whole number, at most {_LARGEST:,}")
    return int(value)


def _real(cell: str) -> float:
    value = float(cell)
    if not math.isfinite(value):
        raise ValueError("it must be finite")
    return value


def _boolean(cell: str) -> bool:
    if cell.lower() not in ("true", "false", "1", "0", "1.0", "0.0"):
        raise ValueError("it must be TRUE or FALSE")
    return cell.lower() in ("true", "1", "1.0")


def _numbers(cell: str) -> tuple[int, ...]:
    return () if cell.lower() in (NONE, "nan") else tuple(_integer(part) for part in cell.split(","))


_TYPES: dict[Any, Callable[[str], Any]] = {int: _integer, float: _real, bool: _boolean, str: str}
_PARSERS: dict[str, Callable[[str], Any]] = {
    field.name: _TYPES.get(field.type, _numbers) for field in dataclasses.fields(Preset)
}
