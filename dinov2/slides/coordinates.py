"""Where a slide's patches lie, and how a patch is read: from a level as it is, or resampled to a pixel size."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinov2.slides.errors import CoordinatesError, SlideError
from dinov2.slides.magnification import magnification
from dinov2.slides.reader import Size, SlideReader

_ENDS = 4096  # bytes of a file's head and tail that tell it from others
# A level this near to the target's pixel size is read as it is.
_SAME = 0.005
# Patches of a somewhat coarser slide are enlarged (0.23 um/px taken for 0.25, say); beyond, detail would be invented.
_ENLARGE = 0.8


@dataclass(frozen=True)
class Geometry:
    """The patches' size, their resolution, and the level they are read from.

    Attributes:
        patch_size: side of the patch that comes out, px.
        overlap: of neighbours, in px of the patch that comes out.
        mpp0: micrometres per level-0 px.
        downsample: level-0 px per px of the patch that comes out, along one side.
        level: the level that is read.
        level_downsample: level-0 px per px of that level.
        native: whether patches are the level's own pixels; otherwise they are resampled.
    """

    patch_size: int
    overlap: int
    mpp0: float
    downsample: float
    level: int
    level_downsample: float
    native: bool

    @property
    def mpp(self) -> float:
        """Micrometres per px of the patch that comes out."""
        return self.mpp0 * self.downsample

    @property
    def patch_size_level0(self) -> int:
        """Side of a patch in level-0 px, rounded."""
        return round(self.patch_size * self.downsample)

    @property
    def level0_magnification(self) -> float:
        """10 / mpp of level 0."""
        return magnification(self.mpp0)

    @property
    def target_magnification(self) -> float:
        """10 / mpp of the patch that comes out."""
        return magnification(self.mpp)


@dataclass(frozen=True)
class Coordinates:
    """The patches of one slide.

    Attributes:
        name: the slide's name, without suffix.
        size: (width, height) of level 0, px.
        coords: (N, 2) int64, x and y of the top left corners in level-0 px.
        geometry: what is read there.
        slide: path of the slide when the coordinates were made, for those who find the file; it is not read back.
        file_number: of the slide's file, see `file_number`; None where it is not known.
    """

    name: str
    size: Size
    coords: NDArray[np.int64] = field(repr=False)
    geometry: Geometry = field()
    slide: str = ""
    file_number: int | None = None

    def __len__(self) -> int:
        return len(self.coords)


def geometry_at_level(slide: SlideReader, level: int, patch_size: int, mpp0: float, overlap: int = 0) -> Geometry:
    """Patches of a level's own pixels.

    Raises:
        SlideError: the level does not exist.
    """
    count = len(slide.level_dimensions)
    if not 0 <= level < count:
        sizes = ", ".join(f"{i}: {w} x {h}" for i, (w, h) in enumerate(slide.level_dimensions))
        raise SlideError(f"{slide.path}: level {level} does not exist; there are {count} ({sizes}).")
    scale = slide.level_downsamples[level]
    return Geometry(patch_size, overlap, mpp0, scale, level, scale, native=True)


def geometry_at_mpp(slide: SlideReader, mpp: float, patch_size: int, mpp0: float, overlap: int = 0) -> Geometry:
    """Patches at a pixel size: a level's own pixels where one has it to 0.5%, else resampled from the next finer level.

    Raises:
        SlideError: level 0 is much coarser than the pixel size asked for.
    """
    scale = mpp / mpp0
    levels = slide.level_downsamples
    same = [level for level, value in enumerate(levels) if abs(value / scale - 1) <= _SAME]
    if same:
        return geometry_at_level(slide, same[0], patch_size, mpp0, overlap)
    if scale < _ENLARGE:
        raise SlideError(
            f"{slide.path}: {mpp:g} um per px were asked for, but level 0 has {mpp0:g}: patches would be enlarged "
            f"{1 / scale:.2f} times. Ask for {mpp0:g} or more."
        )
    level = finest_level_for(levels, scale)
    return Geometry(patch_size, overlap, mpp0, scale, level, levels[level], native=False)


def finest_level_for(level_downsamples: Sequence[float], scale: float) -> int:
    """Return the coarsest level that is not coarser than `scale` level-0 px per px; 0 where all are."""
    return max((level for level, value in enumerate(level_downsamples) if value <= scale), default=0)


def read_patch(slide: SlideReader, geometry: Geometry, x: int, y: int) -> NDArray[np.uint8]:
    """Read the patch whose top left corner is (x, y) in level-0 px; black outside of the slide.

    Returns:
        (patch_size, patch_size, 3) uint8 RGB.

    Raises:
        SlideError: the pixels cannot be decoded.
    """
    location, side = (int(x), int(y)), geometry.patch_size
    if geometry.native:
        return slide.read_region(location, geometry.level, (side, side))
    field_of_view = side * geometry.downsample / geometry.level_downsample  # px of the level, not whole
    whole = int(np.ceil(field_of_view))
    region = Image.fromarray(slide.read_region(location, geometry.level, (whole, whole)))
    box = (0.0, 0.0, field_of_view, field_of_view)
    return np.asarray(region.resize((side, side), Image.Resampling.BICUBIC, box=box))  # (P, P, 3)


def file_number(path: Path) -> int:
    """Return 60 bits of a hash of a slide file's length, head and tail, which slides of one size in px hardly share.

    Cheap enough for every slide of a training run; a copy has the same.
    """
    length = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(_ENDS)
        file.seek(max(0, length - _ENDS))
        digest = hashlib.sha256(b"%d %b%b" % (length, head, file.read(_ENDS)))
    return int(digest.hexdigest()[:15], 16)


def check_slide(coordinates: Coordinates, slide: SlideReader) -> None:
    """Check that coordinates were made for this slide.

    Raises:
        CoordinatesError: its size is another, or its file where coordinates tell it, or a patch lies outside.
        SlideError: the level to read does not exist.
    """
    if coordinates.size != (0, 0) and coordinates.size != slide.level_dimensions[0]:
        raise CoordinatesError(
            f"coordinates of {coordinates.name} were made for a slide of {coordinates.size[0]} x {coordinates.size[1]} "
            f"px, but {slide.path} has {slide.level_dimensions[0][0]} x {slide.level_dimensions[0][1]}. "
            "They belong to another slide: make them again."
        )
    if coordinates.file_number is not None and coordinates.file_number != file_number(slide.path):
        raise CoordinatesError(
            f"coordinates of {coordinates.name} were made for another file than {slide.path}: another slide of the "
            "same size in px, or another version of this one. Make them again: python -m eval.patches."
        )
    if not 0 <= coordinates.geometry.level < len(slide.level_dimensions):
        raise SlideError(
            f"{slide.path}: level {coordinates.geometry.level} of the coordinates does not exist; "
            f"there are {len(slide.level_dimensions)}. They belong to another slide: make them again."
        )
    side = max(coordinates.geometry.patch_size_level0, 1)
    outside = ((coordinates.coords <= -side) | (coordinates.coords >= slide.level_dimensions[0])).any(axis=1)  # (N,)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise CoordinatesError(
            f"patch {row} of the coordinates of {coordinates.name}, at {tuple(coordinates.coords[row].tolist())}, lies "
            f"outside of {slide.path} ({slide.level_dimensions[0][0]} x {slide.level_dimensions[0][1]} px). "
            "They belong to another slide: make them again."
        )


def reading_order(coords: NDArray[np.int64], tile_size: Size, level_downsample: float = 1.0) -> NDArray[np.int64]:
    """Order (N,) in which to read patches so that neighbours share the slide's compressed tiles: row by row of tiles.

    Args:
        coords: (N, 2) level-0 px.
        tile_size: (width, height) of the slide's tiles, px of the level that is read.
        level_downsample: level-0 px per px of that level.
    """
    columns, rows = (coords // (np.array(tile_size) * level_downsample)).T  # (N,) each
    return np.lexsort((coords[:, 0], coords[:, 1], columns, rows))
