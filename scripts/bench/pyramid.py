"""A tiled TIFF pyramid of any size, made of the tissue of a real slide."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from dinov2.slides import open_slide
from dinov2.utils.files import replacing

SVS = Path(__file__).resolve().parents[1] / "data" / "cmu-1-small-region.svs"
FACTORS = (1, 4, 16, 64)
MPP = 0.499
TILE = 256
WHITE = 245
_MARGIN = 0.1  # of each side, without tissue


def level_factors(size: int) -> tuple[int, ...]:
    """Return the downsamples of the levels that are at least a tile wide."""
    return tuple(factor for factor in FACTORS if factor == 1 or size // factor >= TILE)


def make_pyramid(path: Path, size: int, source: Path = SVS, factors: Sequence[int] = ()) -> Path:
    """Write a square slide of `size` px, tissue repeated in its middle and a white margin; nothing if it is there.

    Tiles are made as they are written, so that memory does not grow with the size.

    Args:
        path: the file.
        size: px.
        source: the slide with the tissue.
        factors: downsamples of its levels, by default `level_factors(size)`. What is timed at two sizes needs the same
            ones: tissue is found on the level nearest to 64, which is otherwise sixteen times larger on one of them.
    """
    if path.exists():
        return path
    with open_slide(source) as slide:
        width, height = (side // FACTORS[-1] * FACTORS[-1] for side in slide.level_dimensions[0])
        tissue = slide.read_region((0, 0), 0, (width, height))  # (H, W, 3)
    with replacing(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True) as writer:
        for factor in factors or level_factors(size):
            blocks = tissue.reshape(height // factor, factor, width // factor, factor, 3)
            side = size // factor
            writer.write(
                _tiles(blocks.mean(axis=(1, 3)).astype(np.uint8), side),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 80},
                subfiletype=int(factor > 1),
                resolution=(1e4 / MPP / factor, 1e4 / MPP / factor),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


def _tiles(tissue: NDArray[np.uint8], side: int) -> Iterator[NDArray[np.uint8]]:
    first, last = int(side * _MARGIN), side - int(side * _MARGIN)
    for y in range(0, side, TILE):
        for x in range(0, side, TILE):
            rows, columns = np.arange(y, y + TILE), np.arange(x, x + TILE)
            tile = tissue[rows % len(tissue)][:, columns % tissue.shape[1]]  # (TILE, TILE, 3)
            inside = ((rows >= first) & (rows < last))[:, None] & ((columns >= first) & (columns < last))
            yield np.where(inside[..., None], tile, np.uint8(WHITE))
