"""Which slides an embedding job has: from slides with coordinates, coordinates alone, or stored pixels."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import h5py

from dinov2.slides.coordinates_file import find_coordinates, read_contents
from dinov2.slides.errors import CoordinatesError
from dinov2.slides.open import slide_name
from eval.embedding.options import SlideToEmbed
from eval.embedding.sources import PatchSource, slide_source, stored_source
from eval.errors import EvalError
from eval.patching.options import JOB
from eval.patching.state import SlideState, read_state, read_states, state_path


def from_slides(slides: Sequence[Path], coords: Path) -> list[SlideToEmbed]:
    """Return slides with their coordinates in a folder, those included that its patching job has found no tissue in."""
    chosen = []
    for path in slides:
        name = slide_name(path)
        state = read_state(state_path(coords, JOB, name)) or read_state(state_path(coords.parent, JOB, name))
        empty = state is not None and state.status == "empty"
        failure = state.reason if state is not None and state.status == "failed" else ""
        chosen.append(SlideToEmbed(name, path, partial(_with_coordinates, name, path, coords, failure), empty))
    return chosen


def from_coordinates(folder: Path) -> list[SlideToEmbed]:
    """Return the slides that the coordinate files of a folder name, and those that its patching job has had besides.

    Raises:
        EvalError: there is no file.
    """
    return _in_folder(folder, "--coords", _named_slide)


def from_patches(folder: Path) -> list[SlideToEmbed]:
    """Return the files with pixels of a folder, and the slides that its patching job has had besides.

    Raises:
        EvalError: there is no file.
    """
    return _in_folder(folder, "--patches", lambda name, file, _: stored_source(name, file))


def _in_folder(
    folder: Path, option: str, opener: Callable[[str, Path, SlideState | None], PatchSource]
) -> list[SlideToEmbed]:
    if not folder.is_dir():
        raise EvalError(f"{option} {folder}: no such folder.")
    place = folder / "patches" if (folder / "patches").is_dir() else folder
    files = {
        path.stem.removesuffix("_patches"): path for path in sorted(place.glob("*.h5")) if not path.name.startswith(".")
    }
    states = {state.name: state for state in read_states(folder.parent if folder.name == "patches" else folder, JOB)}
    if not files and not states:
        raise EvalError(f"{option} {folder}: no .h5 file in {place}. Make them: python -m eval.patches.")
    slides = []
    for name in sorted(files.keys() | states.keys()):
        state = states.get(name)
        if name in files and (state is None or state.status not in ("failed", "empty")):
            slides.append(SlideToEmbed(name, files[name], partial(opener, name, files[name], state)))
        elif state is not None:
            reason = state.reason or f"{state.status}, but its file is missing. Run python -m eval.patches again"
            path, empty = Path(state.slide), state.status == "empty"
            slides.append(SlideToEmbed(name, path, partial(_not_patched, reason), empty))
    return slides


def _not_patched(reason: str) -> NoReturn:
    raise EvalError(f"patching failed: {reason}")


def _with_coordinates(name: str, path: Path, coords: Path, failure: str) -> PatchSource:
    if failure:
        _not_patched(failure)
    return slide_source(name, path, find_coordinates(coords, name))


def _named_slide(name: str, file: Path, state: SlideState | None) -> PatchSource:
    """Patches of the slide that the patching job's state names, or else the coordinate file itself.

    The state comes first, because HDF5 may never return where it looks for a text in a damaged file.
    """
    read_contents(file)  # damage shows here in most cases
    slide = state.slide if state is not None and Path(state.slide).is_file() else ""
    if not slide:
        with h5py.File(file, "r") as opened:
            slide = str(opened["coords"].attrs.get("slide", ""))
    if not slide:
        raise CoordinatesError(f"{file} does not say where its slide is. Give --slides as well.")
    return slide_source(name, Path(slide), file)
