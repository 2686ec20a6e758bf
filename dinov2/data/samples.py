"""From a position of the stream to a decoded tile and what is to be done to it."""

from dataclasses import dataclass

from torch import Tensor

from dinov2.data.crop_params import CropParams, draw_crops, draw_jpeg_quality
from dinov2.data.datasets import TileDataset
from dinov2.data.datasets.base import part_of
from dinov2.data.errors import BadTileError
from dinov2.data.samplers import make_stream
from dinov2.data.seeding import derive_seed, sample_seed, torch_seed
from dinov2.data.tiles import recompress
from dinov2.utils.schema import CropsSection

MAX_REPLACEMENTS = 32


@dataclass
class Sample:
    """One tile with the parameters of its crops: two global ones, then the local ones.

    `tile` is None where neither the tile nor any replacement could be decoded; `bad` lists (path, reason) of the
    failures on the way.
    """

    position: int
    path: str
    tile: Tensor | None  # uint8 (3, H, W)
    crops: list[CropParams]
    bad: list[tuple[str, str]]


class SampleStream:
    """Map-style view of the infinite stream for a torch DataLoader: `stream[position] -> Sample`.

    A tile that cannot be decoded is replaced by one of the same data set, or part of a mixture, whose index is drawn
    from (seed, position, attempt), so every process replaces it alike; after 16 that are bad, too, by one of any part.
    Parameters are drawn from (seed, position).

    Args:
        dataset: the tiles.
        crops: the augmentation, of which everything random is drawn here.
        seed: `train.seed`.
    """

    def __init__(self, dataset: TileDataset, crops: CropsSection, seed: int) -> None:
        self.dataset = dataset
        self.crops = crops
        self.seed = seed
        self.order = make_stream(dataset, seed)

    def __getitem__(self, position: int) -> Sample:
        index, tile, bad = self._readable_tile(position)
        path = self.dataset.path(index)
        if tile is None:
            return Sample(position, path, None, [], bad)
        with torch_seed(sample_seed(self.seed, position)):
            crops = draw_crops(self.crops, tile.shape[-2], tile.shape[-1])
            quality = draw_jpeg_quality(self.crops)
        return Sample(position, path, tile if quality is None else recompress(tile, quality), crops, bad)

    def _readable_tile(self, position: int) -> tuple[int, Tensor | None, list[tuple[str, str]]]:
        """Index and image of the tile at a position or of its replacement, and the failures before it."""
        bad: list[tuple[str, str]] = []
        first = index = self.order.index_at(position)
        for attempt in range(MAX_REPLACEMENTS + 1):
            if attempt:
                index = self._replacement(first, position, attempt)
            try:
                return index, self.dataset.decode(index), bad
            except BadTileError as error:
                bad.append((error.path, error.reason))
        return index, None, bad

    def _replacement(self, index: int, position: int, attempt: int) -> int:
        alike = part_of(self.dataset, index) if attempt <= MAX_REPLACEMENTS // 2 else range(len(self.dataset))
        return alike[derive_seed(self.seed, "replacement", position, attempt) % len(alike)]
