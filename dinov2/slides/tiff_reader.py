"""TIFF slides that OpenSlide does not take, above all OME-TIFF, decoded tile by tile by tifffile.

Levels are those of the file's first series (SubIFDs in an OME-TIFF). RGB may be stored interleaved or as three planes.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from dinov2.slides.errors import SlideError
from dinov2.slides.reader import Size, downsamples

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".qptiff")
_CACHED_TILES = 64
_NOT_RGB = {0: "MINISWHITE", 3: "PALETTE"}  # TIFF 6.0, PhotometricInterpretation
# Micrometres in the units of TIFF's ResolutionUnit and of OME's PhysicalSize.
_TIFF_UNITS = {2: 25400.0, 3: 10000.0}
_OME_UNITS = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


class TiffReader:
    """Implements `SlideReader` by tifffile and imagecodecs.

    Raises:
        SlideError: not a TIFF, not 8-bit grey or RGB, or a codec is missing.
    """

    def __init__(self, path: Path) -> None:
        try:
            import tifffile
        except ImportError as error:
            raise SlideError(
                f"{path}: tifffile is not installed ({error}); pip install tifffile imagecodecs"
            ) from error
        self.path = path
        try:
            self._file = tifffile.TiffFile(path)
        except Exception as error:  # a damaged directory raises nearly anything
            raise SlideError(f"{path}: tifffile: {type(error).__name__}: {error}") from error
        try:
            if not self._file.series:
                raise SlideError(f"{path}: tifffile: no image in it: its directory lies beyond the end, or is empty")
            series = self._file.series[0]
            self._levels = [_Level(path, level) for level in series.levels]
            self.properties: Mapping[str, str] = _resolution(self._file, series)
            self.level_dimensions: tuple[Size, ...] = tuple((level.width, level.height) for level in self._levels)
            self.level_downsamples: tuple[float, ...] = downsamples(self.level_dimensions)
        except Exception as error:
            self._file.close()
            if isinstance(error, SlideError):
                raise
            raise SlideError(f"{path}: tifffile: {type(error).__name__}: {error}") from error
        self.tile_size: Size = (self._levels[0].tile_width, self._levels[0].tile_height)
        self._tiles: OrderedDict[tuple[int, int, int], NDArray[np.uint8]] = OrderedDict()

    def read_region(self, location: Size, level: int, size: Size) -> NDArray[np.uint8]:
        """See `SlideReader.read_region`."""
        source, scale = self._levels[level], self.level_downsamples[level]
        left, top = round(location[0] / scale), round(location[1] / scale)
        region = np.zeros((size[1], size[0], 3), dtype=np.uint8)
        for row, column in source.tiles(left, top, size):
            tile = self._tile(level, row, column)  # (h, w, 3)
            x, y = column * source.tile_width - left, row * source.tile_height - top
            x0, y0 = max(x, 0), max(y, 0)
            x1, y1 = min(x + tile.shape[1], size[0]), min(y + tile.shape[0], size[1])
            region[y0:y1, x0:x1] = tile[y0 - y : y1 - y, x0 - x : x1 - x]
        return region

    def _tile(self, level: int, row: int, column: int) -> NDArray[np.uint8]:
        key = (level, row, column)
        if key in self._tiles:
            self._tiles.move_to_end(key)
            return self._tiles[key]
        try:
            tile = self._levels[level].decode(row, column)
        except Exception as error:
            raise SlideError(
                f"{self.path}: tile in row {row}, column {column} of level {level} cannot be decoded: "
                f"{type(error).__name__}: {error}. The file is damaged or cut off, or imagecodecs is not installed."
            ) from error
        self._tiles[key] = tile
        if len(self._tiles) > _CACHED_TILES:
            self._tiles.popitem(last=False)
        return tile

    def close(self) -> None:
        """Free the file."""
        self._tiles.clear()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Level:
    """One level: where its tiles (or strips) are, and how they are decoded."""

    def __init__(self, path: Path, level: Any) -> None:
        self.pages = list(level.pages)
        page = self.page = self.pages[0]
        self.width, self.height = int(page.imagewidth), int(page.imagelength)
        self.planes = page.samplesperpixel if page.planarconfig == 2 else 1
        channels = page.samplesperpixel * (len(self.pages) if len(self.pages) > 1 else 1)
        if page.dtype != np.uint8 or channels not in (1, 3, 4) or page.imagedepth != 1:
            raise SlideError(
                f"{path}: {channels} channels of {page.dtype}, axes {level.axes}: not an 8-bit grey or RGB image. "
                "Export the bright-field image as 8-bit RGB."
            )
        if page.photometric in _NOT_RGB:
            raise SlideError(
                f"{path}: colours stored as {_NOT_RGB[page.photometric]}, which would be read as others. Export the "
                "bright-field image as 8-bit RGB."
            )
        self.tile_width = int(page.tilewidth) if page.is_tiled else self.width
        self.tile_height = int(page.tilelength) if page.is_tiled else min(int(page.rowsperstrip), self.height)
        self.columns = -(-self.width // self.tile_width)
        self.rows = -(-self.height // self.tile_height)

    def tiles(self, left: int, top: int, size: Size) -> Iterator[tuple[int, int]]:
        """(row, column) of the tiles that a region of this level touches."""
        rows = range(max(top // self.tile_height, 0), min(-(-(top + size[1]) // self.tile_height), self.rows))
        columns = range(max(left // self.tile_width, 0), min(-(-(left + size[0]) // self.tile_width), self.columns))
        return ((row, column) for row in rows for column in columns)

    def decode(self, row: int, column: int) -> NDArray[np.uint8]:
        """Tile (h, w, 3), cut where the image ends."""
        index = row * self.columns + column
        if len(self.pages) > 1:
            parts = [self._segment(page, index) for page in self.pages]
        else:
            parts = [self._segment(self.page, index + p * self.rows * self.columns) for p in range(self.planes)]
        tile = np.concatenate(parts, axis=2)  # (h, w, 1 or 3 or 4)
        tile = tile[: self.height - row * self.tile_height, : self.width - column * self.tile_width]  # without padding
        return np.repeat(tile, 3, axis=2) if tile.shape[2] == 1 else tile[..., :3]

    def _segment(self, page: Any, index: int) -> NDArray[np.uint8]:
        page = page.aspage()
        handle, offset, count = page.parent.filehandle, page.dataoffsets[index], page.databytecounts[index]
        if count == 0:  # sparse file
            return np.zeros((self.tile_height, self.tile_width, 1), dtype=np.uint8)
        if offset + count > handle.size:
            raise EOFError(f"it ends at byte {offset + count:,}, the file at {handle.size:,}")
        handle.seek(offset)
        data = handle.read(count)  # at once: asking the page for its decoder may move the file's position
        options = {"jpegtables": page.jpegtables} if page.compression == 7 else {}
        array, _, _ = page.decode(data, index, **options)  # (1, h, w, samples)
        return np.asarray(array[0])


def _resolution(file: Any, series: Any) -> dict[str, str]:
    """Return `openslide.mpp-x` and `-y` from the OME-XML, else from the resolution tags, where there are any."""
    if file.is_ome and file.ome_metadata:
        for element in ElementTree.fromstring(file.ome_metadata).iter():
            if element.tag.endswith("}Pixels"):
                found = {}
                for axis in "XY":
                    size = element.get(f"PhysicalSize{axis}")
                    unit = _OME_UNITS.get(element.get(f"PhysicalSize{axis}Unit", "µm"))
                    if size is not None and unit is not None:
                        found[f"openslide.mpp-{axis.lower()}"] = repr(float(size) * unit)
                return found
    tags = series.pages[0].aspage().tags
    unit = _TIFF_UNITS.get(int(tags["ResolutionUnit"].value)) if "ResolutionUnit" in tags else None
    found = {}
    for axis in "XY":
        tag = tags.get(f"{axis}Resolution")
        if unit is not None and tag is not None and tag.value[0] > 0 and tag.value[1] > 0:
            found[f"openslide.mpp-{axis.lower()}"] = repr(unit * tag.value[1] / tag.value[0])
    return found
