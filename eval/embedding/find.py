"""Which slides an embedding job has: from slides with coordinates, coordinates alone, or stored pixels."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import h5py

from dinov2.slides.coordinates_file import find_coordinates
from dinov2.slides.errors import CoordinatesError
from dinov2.slides.open import slide_name
from eval.embedding.run import SlideToEmbed
from eval.embedding.sources import PatchSource, slide_source, stored_source
from eval.errors import EvalError
from eval.patching.options import JOB
from eval.patching.slides import Shard
from eval.patching.state import read_state, read_states, state_path


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


def from_coordinates(folder: Path, shard: Shard | None = None) -> tuple[list[SlideToEmbed], list[str]]:
    """Return the slides that the coordinate files of a folder name, and those that its patching job has failed at.

    Returns:
        The slides of a shard, and the names of those without tissue.

    Raises:
        EvalError: there is no file.
    """
    return _in_folder(folder, "--coords", _by_attribute, shard)


def from_patches(folder: Path, shard: Shard | None = None) -> tuple[list[SlideToEmbed], list[str]]:
    """Return the files with pixels of a folder, and the slides that its patching job has failed at.

    Returns:
        The slides of a shard, and the names of those without tissue.

    Raises:
        EvalError: there is no file.
    """
    return _in_folder(folder, "--patches", stored_source, shard)


def _in_folder(
    folder: Path, option: str, opener: Callable[[str, Path], PatchSource], shard: Shard | None
) -> tuple[list[SlideToEmbed], list[str]]:
    if not folder.is_dir():
        raise EvalError(f"{option} {folder}: no such folder.")
    place = folder / "patches" if (folder / "patches").is_dir() else folder
    files = {
        path.stem.removesuffix("_patches"): path for path in sorted(place.glob("*.h5")) if not path.name.startswith(".")
    }
    states = {state.name: state for state in read_states(folder.parent if folder.name == "patches" else folder, JOB)}
    if not files and not states:
        raise EvalError(f"{option} {folder}: no .h5 file in {place}. Make them: python -m eval.patches.")
    slides, empty = [], []
    names = sorted(files.keys() | states.keys())
    for name in names if shard is None else names[shard.index :: shard.count]:
        state = states.get(name)
        if state is not None and state.status == "empty":
            empty.append(name)
        elif name in files and (state is None or state.status != "failed"):
            slides.append(SlideToEmbed(name, files[name], partial(opener, name, files[name])))
        elif state is not None:
            reason = state.reason or f"{state.status}, but its file is missing. Run python -m eval.patches again"
            slides.append(SlideToEmbed(name, Path(state.slide), partial(_not_patched, reason)))
    return slides, empty


def _not_patched(reason: str) -> NoReturn:
    raise EvalError(f"patching failed: {reason}")


def _with_coordinates(name: str, path: Path, coords: Path, failure: str) -> PatchSource:
    if failure:
        _not_patched(failure)
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
