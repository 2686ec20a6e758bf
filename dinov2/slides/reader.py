"""What the rest of the program asks of a slide, whatever its format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]


class SlideReader(Protocol):
    """An open slide; a context manager. Not to be shared between threads or processes.

    Attributes:
        path: the file.
        level_dimensions: (width, height) in px of every level, the largest first.
        level_downsamples: how many level-0 px a px of each level covers, along one side; 1.0 first.
        tile_size: (width, height) in px of the compressed tiles of level 0, for reading in a good order.
        properties: metadata under OpenSlide's names: `openslide.mpp-x`, `openslide.mpp-y` (micrometres per px),
            `openslide.objective-power`, and whatever else the format has.
    """

    path: Path
    level_dimensions: tuple[Size, ...]
    level_downsamples: tuple[float, ...]
    tile_size: Size
    properties: Mapping[str, str]

    def read_region(self, location: Size, level: int, size: Size) -> NDArray[np.uint8]:
        """Return an RGB region, black where it lies outside of the slide.

        Args:
            location: (x, y) of its top left corner in level-0 px.
            level: which level to read.
            size: (width, height) in px of that level.

        Returns:
            (height, width, 3) uint8.

        Raises:
            SlideError: the pixels cannot be decoded.
        """
        ...

    def close(self) -> None:
        """Free the file."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


def downsamples(dimensions: tuple[Size, ...]) -> tuple[float, ...]:
    """Return each level's downsample: the mean of the ratios of widths and heights, as OpenSlide defines it."""
    width, height = dimensions[0]
    return tuple((width / w + height / h) / 2 for w, h in dimensions)


def paste_region(source: NDArray[np.uint8], left: int, top: int, size: Size) -> NDArray[np.uint8]:
    """Cut (height, width, 3) out of an image (H, W, 3) at (left, top), black where it ends."""
    width, height = size
    region = np.zeros((height, width, 3), dtype=np.uint8)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + width, source.shape[1]), min(top + height, source.shape[0])
    if x1 > x0 and y1 > y0:
        region[y0 - top : y1 - top, x0 - left : x1 - left] = source[y0:y1, x0:x1]
    return region
