"""A level of a slide, in strips and reduced where it is too large for memory."""

import math
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from dinov2.slides.reader import SlideReader

REFERENCE_DOWNSAMPLE = 64
_STRIP_PIXELS = 2**23


def level_nearest(slide: SlideReader, downsample: float = REFERENCE_DOWNSAMPLE) -> int:
    """Return the level whose downsample is nearest by ratio."""
    return min(
        range(len(slide.level_downsamples)),
        key=lambda level: abs(math.log(slide.level_downsamples[level] / downsample)),
    )


def reduction_for(size: tuple[int, int], max_pixels: int) -> int:
    """Return the least whole factor by which an image of this (width, height) has to be reduced to `max_pixels`."""
    return max(1, math.ceil(math.sqrt(size[0] * size[1] / max_pixels)))


def reduced_strips(slide: SlideReader, level: int, factor: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Read a level from top to bottom, averaged over squares of `factor` px.

    Yields:
        The row at which a strip begins in the reduced image, and the strip (h, W // factor, 3). What is left over
        at the right and lower edge when the size is no multiple of the factor is cut.
    """
    width, height = (side // factor for side in slide.level_dimensions[level])
    scale = slide.level_downsamples[level]
    rows = max(1, _STRIP_PIXELS // (width * factor * factor))
    for top in range(0, height, rows):
        count = min(rows, height - top)
        region = slide.read_region((0, round(top * factor * scale)), level, (width * factor, count * factor))
        yield top, region if factor == 1 else _shrink(region, (width, count))


def reduced_image(slide: SlideReader, level: int, max_pixels: int) -> NDArray[np.uint8]:
    """Return a level (h, w, 3) of at most `max_pixels` px."""
    factor = reduction_for(slide.level_dimensions[level], max_pixels)
    return np.concatenate([strip for _, strip in reduced_strips(slide, level, factor)])


def _shrink(region: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(region, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
