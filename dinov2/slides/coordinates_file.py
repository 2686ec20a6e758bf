"""Coordinate files `<slide>.h5`: dataset `coords` (N, 2) in level-0 px, and attributes that other tools read.

CLAM's feature extraction reads `patch_size` px of `patch_level`, as they are. TRIDENT's reads `patch_size` as the side
of the patch that comes out, at `target_magnification` of a slide of `level0_magnification`, and resamples. Files of
patches at a level carry both sets. Files of resampled patches carry no `patch_level`: CLAM stops at its absence instead
of reading another field of view.

Files written by CLAM and by TRIDENT are read as well.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dinov2.slides.coordinates import Coordinates, Geometry, finest_level_for
from dinov2.slides.errors import CoordinatesError
from dinov2.slides.reader import SlideReader
from dinov2.utils.files import replacing

_NUMBERS = (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID)
_FILE_NUMBER = "slide_file_number"
_ATTRIBUTES = (
    *("patch_size", "overlap", "level0_width", "level0_height", "level0_mpp", "level0_magnification"),
    *("patch_size_level0", "level_dim", "downsampled_level_dim"),
    *("target_magnification", "patch_level", "downsample", "read_level", "read_downsample", _FILE_NUMBER),
)
_MOST_PATCHES = 2**27  # of 1 GiB; a larger number is damage
_FARTHEST = 2**31  # level-0 px
_LARGEST_FIELD = 2**14  # px along a side


def coordinate_attributes(coordinates: Coordinates, slide: SlideReader, folder: Path) -> dict[str, Any]:
    """Return the attributes of `coords` in a file in `folder`."""
    geometry = coordinates.geometry
    attributes = {
        "patch_size": geometry.patch_size,
        "patch_size_level0": geometry.patch_size_level0,
        "level0_magnification": geometry.level0_magnification,
        "target_magnification": geometry.target_magnification,
        "overlap": max(geometry.overlap, 0),  # patches further apart than they are wide do not overlap
        "name": coordinates.name,
        "savetodir": str(folder),
        "level0_width": coordinates.size[0],
        "level0_height": coordinates.size[1],
        "level0_mpp": geometry.mpp0,
        "slide": coordinates.slide,
    }
    if coordinates.file_number is not None:
        attributes[_FILE_NUMBER] = coordinates.file_number
    if geometry.native:
        attributes |= {
            "patch_level": geometry.level,
            "downsample": np.array([geometry.level_downsample] * 2),
            "downsampled_level_dim": np.array(slide.level_dimensions[geometry.level]),
            "level_dim": np.array(slide.level_dimensions[geometry.level]),
            "save_path": str(folder),
        }
    else:
        attributes |= {"read_level": geometry.level, "read_downsample": geometry.level_downsample}
    return attributes


def write_coordinates(path: Path, coordinates: Coordinates, slide: SlideReader) -> None:
    """Write a coordinate file, whole or not at all."""
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        dataset = file.create_dataset("coords", data=coordinates.coords)
        dataset.attrs.update(coordinate_attributes(coordinates, slide, path.parent))


def read_coordinates(path: Path, slide: SlideReader | None = None) -> Coordinates:
    """Read a coordinate file of this project, of CLAM or of TRIDENT; the slide's name is that of the file.

    Args:
        path: the file.
        slide: the open slide; needed for files of CLAM and TRIDENT, which do not say all about its levels.

    Raises:
        CoordinatesError: missing, unreadable, without `coords` or the attributes, with values that cannot be, or
            `slide` is needed.
    """
    return interpret(path, *read_contents(path), slide)


def read_contents(path: Path) -> tuple[NDArray[Any], dict[str, Any]]:
    """Read the numbers `coords` (N, 2) of a file as they are stored, and those of their attributes that are numbers.

    Raises:
        CoordinatesError: missing, unreadable, or without `coords`.
    """
    try:
        with h5py.File(path, "r") as file:
            dataset = file["coords"]
            if dataset.dtype.kind not in "iuf" or dataset.size > 2 * _MOST_PATCHES:
                raise ValueError(f"coords are {dataset.dtype} {dataset.shape}, not numbers (N, 2)")
            stored = np.asarray(dataset[()]).reshape(-1, 2)
            return stored, {name: _number(dataset.attrs, name) for name in _ATTRIBUTES if name in dataset.attrs}
    except Exception as error:  # a damaged file makes HDF5 raise OSError, RuntimeError, KeyError, ...
        raise CoordinatesError(f"{path}: not a readable coordinate file ({error}). Make it again.") from error


def interpret(
    path: Path, stored: NDArray[Any], attributes: Mapping[str, Any], slide: SlideReader | None = None
) -> Coordinates:
    """Return what the contents of a coordinate file mean; see `read_coordinates`."""
    coords = _whole(path, stored)
    try:
        geometry = _geometry(attributes, slide)
        size = (int(attributes.get("level0_width", 0)), int(attributes.get("level0_height", 0)))
        number = int(attributes[_FILE_NUMBER]) if _FILE_NUMBER in attributes else None
    except KeyError as error:
        raise CoordinatesError(
            f"{path}: the attributes of coords have no {error}; there are {', '.join(sorted(attributes)) or 'none'}. "
            "A file has patch_size with patch_level (CLAM), or with level0_magnification and target_magnification."
        ) from error
    except CoordinatesError as error:
        raise CoordinatesError(f"{path}: {error}") from error
    except (ValueError, TypeError, IndexError, ArithmeticError) as error:
        raise CoordinatesError(f"{path}: an attribute of coords is no number of its kind ({error}).") from error
    _check_geometry(path, geometry)
    return Coordinates(path.stem.removesuffix("_patches"), size, coords, geometry, file_number=number)


def find_coordinates(folder: Path, name: str) -> Path:
    """Return the coordinate file of a slide in a folder, as this project, CLAM (`patches/`) or TRIDENT name it.

    Raises:
        CoordinatesError: there is none.
    """
    tried = [base / f"{name}{end}.h5" for base in (folder, folder / "patches") for end in ("", "_patches")]
    for path in tried:
        if path.is_file():
            return path
    raise CoordinatesError(
        f"no coordinates of slide {name} in {folder}: neither {', '.join(str(p.relative_to(folder)) for p in tried)}. "
        "Make them: python -m eval.patches."
    )


def _number(attributes: h5py.AttributeManager, name: str) -> Any:
    """An attribute, a number or a few; raises `ValueError`.

    Attributes are asked for one by one, and text is not read: HDF5 itself may crash where it lists the attributes of a
    damaged file, and never return where it looks for the text.
    """
    attribute = attributes.get_id(name)
    if not isinstance(attribute.get_type(), _NUMBERS) or attribute.shape not in ((), (1,), (2,)):
        raise ValueError(f"its attribute {name} is no number")
    return attributes[name]


def _whole(path: Path, stored: NDArray[Any]) -> NDArray[np.int64]:
    """Check that coordinates (N, 2) are whole numbers of px that a slide can have, and return them as int64."""
    values = stored.astype(np.float64)
    good = (np.abs(values) < _FARTHEST) & (np.floor(values) == values)  # (N, 2); neither holds for NaN
    if not good.all():
        row = int(np.flatnonzero(~good.all(axis=1))[0])
        raise CoordinatesError(
            f"{path}: row {row} of coords is {stored[row].tolist()}; they must be whole numbers of level-0 px below "
            f"{_FARTHEST:,}. Make it again."
        )
    return stored.astype(np.int64)


def _check_geometry(path: Path, geometry: Geometry) -> None:
    """Raise `CoordinatesError` for a size, a field of view or a scale that no patch has."""
    scales = {"downsample": geometry.downsample, "downsample of the level": geometry.level_downsample}
    for what, value in scales.items():
        if not 0 < value < _FARTHEST:  # nor NaN
            raise CoordinatesError(f"{path}: {what} {value:g} must be positive. Make it again.")
    read = geometry.patch_size * geometry.downsample / geometry.level_downsample
    if geometry.patch_size < 1 or not max(geometry.patch_size, read) <= _LARGEST_FIELD:
        raise CoordinatesError(
            f"{path}: patch_size {geometry.patch_size}, of which {read:g} px of a level are read; both must be 1 to "
            f"{_LARGEST_FIELD:,} px. Make it again."
        )


def _geometry(attributes: Mapping[str, Any], slide: SlideReader | None) -> Geometry:
    patch_size, overlap = int(attributes["patch_size"]), int(attributes.get("overlap", 0))
    if "level0_mpp" in attributes:
        mpp0 = float(attributes["level0_mpp"])
        if "patch_level" in attributes:
            scale = float(attributes["downsample"][0])
            return Geometry(patch_size, overlap, mpp0, scale, int(attributes["patch_level"]), scale, native=True)
        scale = float(attributes["level0_magnification"]) / float(attributes["target_magnification"])
        level, read = int(attributes["read_level"]), float(attributes["read_downsample"])
        return Geometry(patch_size, overlap, mpp0, scale, level, read, native=False)
    if slide is None:
        raise CoordinatesError("coordinates of CLAM or TRIDENT can only be read together with their slide.")
    levels = slide.level_downsamples
    if "target_magnification" in attributes:
        power = float(attributes["level0_magnification"])
        scale = power / float(attributes["target_magnification"])
        level = finest_level_for(levels, scale * 1.01)
        native = abs(levels[level] / scale - 1) < 1e-3
        return Geometry(patch_size, overlap, 10 / power, scale, level, levels[level], native)
    level = int(attributes["patch_level"])
    if not 0 <= level < len(levels):
        raise CoordinatesError(f"{slide.path}: patch_level {level} does not exist; there are {len(levels)} levels.")
    # CLAM records no pixel size, and reading a level as it is needs none.
    return Geometry(patch_size, overlap, float("nan"), levels[level], level, levels[level], native=True)
