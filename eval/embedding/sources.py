"""Where the patches of one slide come from: the slide itself, or pixels stored with the coordinates."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dinov2.slides.coordinates import Geometry, check_slide, read_patch, reading_order
from dinov2.slides.coordinates_file import interpret, read_contents
from dinov2.slides.handles import OpenSlides
from dinov2.slides.open import open_slide
from eval.errors import EvalError
from eval.patching.local_copy import shared_copy
from eval.patching.state import fingerprint, job_key

PIXELS = ("img", "imgs")  # hest-bench's name and CLAM's


@dataclass(frozen=True)
class PatchSource:
    """The patches of one slide, as far as they are known without reading a pixel.

    Attributes:
        name: the slide's.
        coords: (N, 2) int64, top left corners in level-0 px.
        attributes: of `coords` in the file they come from, if they are numbers; they go into the feature file.
        order: (N,) in which the patches are best read.
        content: sha256 of what the embeddings depend on: coordinates, and the slide or its stored pixels.
        path: the slide, or the file with the pixels.
        geometry: how patches are read from the slide; None where the pixels are stored.
    """

    name: str
    coords: NDArray[np.int64] = field(repr=False)
    attributes: Mapping[str, Any] = field(repr=False)
    order: NDArray[np.int64] = field(repr=False)
    content: str
    path: Path
    geometry: Geometry | None

    def __len__(self) -> int:
        return len(self.coords)

    def part(self, start: int, stop: int) -> "PatchSource":
        """Return patches `start` to `stop` of the reading order, in that order, with their numbers as `order`.

        It has no more than reading them needs, because it may be sent to another process.
        """
        order = self.order[start:stop]
        return replace(self, coords=self.coords[order], attributes={}, order=order)


def slide_source(name: str, slide_path: Path, coordinate_file: Path) -> PatchSource:
    """Return patches to be read from a slide.

    Raises:
        SlideError, CoordinatesError: slide or file are unusable, or do not belong together.
    """
    stored, attributes = read_contents(coordinate_file)
    with open_slide(slide_path) as slide:
        coordinates = interpret(coordinate_file, stored, attributes, slide)
        check_slide(coordinates, slide)
        geometry, coords = coordinates.geometry, coordinates.coords
        order = reading_order(coords, slide.tile_size, geometry.level_downsample)
    content = _content(coords, attributes, fingerprint(slide_path))
    return PatchSource(name, coords, attributes, order, content, slide_path, geometry)


def stored_source(name: str, path: Path) -> PatchSource:
    """Return patches whose pixels are stored in the file of their coordinates.

    Raises:
        CoordinatesError: the file has no coordinates.
        EvalError: it has no pixels of 8 bits for them.
    """
    stored, attributes = read_contents(path)
    coords = stored.astype(np.int64)
    try:
        with h5py.File(path, "r") as file:
            found: list[Any] = [(file[key].shape, file[key].dtype) for key in PIXELS if key in file]
    except (OSError, KeyError, AttributeError, RuntimeError, ValueError, TypeError) as error:
        raise EvalError(f"{path}: not a readable patches file ({error}). Make it again.") from error
    shape, dtype = found[0] if found else (None, None)
    if shape is None or len(shape) != 4 or shape[0] != len(coords) or shape[-1] != 3:
        raise EvalError(
            f"{path}: no pixels for its {len(coords)} patches (shape of img or imgs: {shape or 'missing'}). "
            "Write them: python -m eval.patches --pixels h5; or give --slides."
        )
    if dtype != np.uint8:
        raise EvalError(
            f"{path}: its pixels are {dtype}; encoders take uint8, 0 to 255, which other numbers would be taken for. "
            "Convert them, or write them with python -m eval.patches --pixels h5."
        )
    content = _content(coords, attributes, fingerprint(path))
    return PatchSource(name, coords, attributes, np.arange(len(coords)), content, path, None)


def read_patches(
    source: PatchSource, indices: NDArray[np.int64], slides: OpenSlides, cache_dir: Path | None = None
) -> NDArray[np.uint8]:
    """Read patches (B, P, P, 3) of one source.

    Args:
        source: the patches, see `PatchSource.part`.
        indices: (B,) their numbers.
        slides: keeps slides open between calls.
        cache_dir: folder to which the slide or file is copied first, by whichever process needs it first.

    Raises:
        SlideError, EvalError: pixels cannot be decoded.
    """
    path = source.path if cache_dir is None else shared_copy(source.path, cache_dir)
    if source.geometry is not None:
        slide, geometry = slides.get(path), source.geometry
        return np.stack([read_patch(slide, geometry, x, y) for x, y in source.coords])
    try:
        with h5py.File(path, "r") as file:
            images = next(file[key] for key in PIXELS if key in file)
            return np.asarray(images[indices[0] : indices[-1] + 1])
    except (OSError, StopIteration) as error:
        raise EvalError(f"{source.path}: pixels cannot be read ({error}). Make the file again.") from error


def _content(coords: NDArray[np.int64], attributes: Mapping[str, Any], pixels: str) -> str:
    kept = {key: str(value) for key, value in attributes.items()}
    return job_key(kept, hashlib.sha256(coords.tobytes()).hexdigest(), pixels)
