"""Process lists: a CSV with a row of parameters for each slide, as CLAM writes and reads them.

Columns: slide_id (the file's name), process (1 to do it), status, then the parameters of `Preset`. Empty cells and
missing columns take the preset's values; a column mpp gives the pixel size.
"""

import csv
import io
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dinov2.slides.open import slide_name
from dinov2.utils.files import write_text
from eval.errors import EvalError
from eval.patching.presets import Preset
from eval.patching.slides import match_slide, parse_mpp, read_table
from eval.patching.state import SlideState

COLUMNS = ("slide_id", "process", "status", *Preset().cells())
_STATUS = {"done": "processed", "empty": "no_tissue", "failed": "failed", "running": "interrupted"}
NOT_YET = "tbp"  # to be processed, in CLAM's words


@dataclass(frozen=True)
class ListedSlide:
    """One row."""

    preset: Preset
    mpp: float | None
    process: bool


def read_process_list(path: Path, slides: Mapping[str, Path], preset: Preset) -> dict[str, ListedSlide]:
    """Read a process list: slide name -> its row.

    Raises:
        EvalError: a slide to do that is not there, one listed twice, an unknown column, or a value that cannot be
            read.
    """
    listed: dict[str, ListedSlide] = {}
    for number, row in enumerate(read_table(path, "--process-list"), start=2):
        where = f"--process-list {path}, line {number}"
        given, process = row.pop("slide_id"), _process(row.pop("process", "") or "", where)
        if not process and given not in slides and slide_name(given) not in slides:
            continue  # of an earlier call, and nothing is to be done
        name = match_slide(given, slides, where)
        if name in listed:
            raise EvalError(f"{where}: {name} is listed twice. Keep one of the rows.")
        row.pop("status", None)
        mpp = (row.pop("mpp", "") or "").strip()
        cells = {key: cell or "" for key, cell in row.items() if key is not None}
        listed[name] = ListedSlide(preset.updated(cells, where), parse_mpp(mpp, where) if mpp else None, process)
    return listed


def _process(cell: str, where: str) -> bool:
    if cell.strip() not in ("", "0", "0.0", "1", "1.0"):
        raise EvalError(f"{where}: process = {cell!r}; it must be 1 (do this slide) or 0 (leave it as it is).")
    return cell.strip() not in ("0", "0.0")


def write_process_list(
    path: Path,
    slides: Mapping[str, Path],
    presets: Mapping[str, Preset],
    states: Iterable[SlideState],
    kept: Collection[str] = (),
) -> None:
    """Write the list of all slides with the parameters used; `process` is 1 where there is still something to do.

    Args:
        path: the CSV.
        slides: name -> slide.
        presets: name -> its parameters.
        states: of those that have been begun.
        kept: slides to which nothing is to be done in any case.
    """
    by_name = {state.name: state for state in states}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for name, slide in slides.items():
        state = by_name.get(name)
        row = {
            "slide_id": slide.name,
            "process": 0 if name in kept or (state is not None and state.final) else 1,
            "status": NOT_YET if state is None else _STATUS[state.status],
            **presets[name].cells(),
        }
        if state is not None and "seg_level" in state.details:
            row["seg_level"] = state.details["seg_level"]
        writer.writerow(row)
    write_text(path, text.getvalue())


def write_manifest(path: Path, slides: Mapping[Path, str]) -> None:
    """Write the slides that have patches as the data set `Slides` takes them: a column `slide` of absolute paths.

    Args:
        path: the CSV.
        slides: slide -> how its settings differ from those of the others, the column `other_settings`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide", "other_settings"])
    writer.writerows([slide.absolute(), mark] for slide, mark in slides.items())
    write_text(path, text.getvalue())
