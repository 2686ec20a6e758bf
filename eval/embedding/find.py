"""Which slides an embedding job has: from slides with coordinates, coordinates alone, or stored pixels."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import h5py

from dinov2.slides.coordinates_file import find_coordinates
from dinov2.slides.errors import CoordinatesError
from dinov2.slides.open import slide_name
from eval.embedding.run import SlideToEmbed
from eval.embedding.sources import PatchSource, slide_source, stored_source
from eval.errors import EvalError
from eval.patching.options import JOB
from eval.patching.state import read_state, state_path


def from_slides(slides: Sequence[Path], coords: Path) -> tuple[list[SlideToEmbed], list[str]]:
    """Return slides with their coordinates in a folder.

    Returns:
        The slides, and the names of those left out because the patching job of that folder has found no tissue.
    """
    chosen, empty = [], []
    for path in slides:
        name = slide_name(path)
        state = read_state(state_path(coords, JOB, name)) or read_state(state_path(coords.parent, JOB, name))
        if state is not None and state.status == "empty":
            empty.append(name)
        else:
            failure = state.reason if state is not None and state.status == "failed" else ""
            chosen.append(SlideToEmbed(name, path, partial(_with_coordinates, name, path, coords, failure)))
    return chosen, empty


def from_coordinates(folder: Path) -> list[SlideToEmbed]:
    """Return the slides that the coordinate files of a folder name.

    Raises:
        EvalError: no file, or one that does not say where its slide is.
    """
    return [SlideToEmbed(name, path, partial(_by_attribute, name, path)) for name, path in _files(folder, "--coords")]


def from_patches(folder: Path) -> list[SlideToEmbed]:
    """Return the files with pixels of a folder.

    Raises:
        EvalError: there is none.
    """
    return [SlideToEmbed(name, path, partial(stored_source, name, path)) for name, path in _files(folder, "--patches")]


def _files(folder: Path, option: str) -> list[tuple[str, Path]]:
    if not folder.is_dir():
        raise EvalError(f"{option} {folder}: no such folder.")
    place = folder / "patches" if (folder / "patches").is_dir() else folder
    files = sorted(path for path in place.glob("*.h5") if not path.name.startswith("."))
    if not files:
        raise EvalError(f"{option} {folder}: no .h5 file in {place}. Make them: python -m eval.patches.")
    return [(path.stem.removesuffix("_patches"), path) for path in files]


def _with_coordinates(name: str, path: Path, coords: Path, failure: str) -> PatchSource:
    if failure:
        raise EvalError(f"patching failed: {failure}")
    return slide_source(name, path, find_coordinates(coords, name))


def _by_attribute(name: str, file: Path) -> PatchSource:
    try:
        with h5py.File(file, "r") as opened:
            slide = str(opened["coords"].attrs.get("slide", ""))
    except (OSError, KeyError) as error:
        raise CoordinatesError(f"{file}: not a readable coordinate file ({error}). Make it again.") from error
    if not slide:
        raise CoordinatesError(f"{file} does not say where its slide is. Give --slides as well.")
    return slide_source(name, Path(slide), file)
