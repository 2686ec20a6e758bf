"""From a position of the stream to an augmented sample."""

from dataclasses import dataclass

from torch import Tensor

from dinov2.data.augmentations import Crops, MultiCropAugmentation
from dinov2.data.datasets import TileDataset
from dinov2.data.errors import BadTileError
from dinov2.data.samplers import make_stream
from dinov2.data.seeding import derive_seed, sample_seed, torch_seed

MAX_REPLACEMENTS = 32


@dataclass
class Sample:
    """One augmented tile.

    `crops` is None where neither the tile nor any replacement could be decoded; `bad` lists (path, reason) of the
    failures on the way.
    """

    position: int
    path: str
    crops: Crops | None
    bad: list[tuple[str, str]]


class SampleStream:
    """Map-style view of the infinite stream for a torch DataLoader: `stream[position] -> Sample`.

    A tile that cannot be decoded is replaced by the tile whose index is drawn from (seed, position, attempt), so every
    process replaces it alike. Augmentation is seeded by (seed, position).

    Args:
        dataset: the tiles.
        augmentation: makes the crops, using torch's CPU RNG.
        seed: `train.seed`.
    """

    def __init__(self, dataset: TileDataset, augmentation: MultiCropAugmentation, seed: int) -> None:
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = seed
        self.order = make_stream(dataset, seed)

    def __getitem__(self, position: int) -> Sample:
        index, tile, bad = self._readable_tile(position)
        path = self.dataset.path(index)
        if tile is None:
            return Sample(position, path, None, bad)
        with torch_seed(sample_seed(self.seed, position)):
            return Sample(position, path, self.augmentation(tile), bad)

    def _readable_tile(self, position: int) -> tuple[int, Tensor | None, list[tuple[str, str]]]:
        """Index and image of the tile at a position or of its replacement, and the failures before it."""
        bad: list[tuple[str, str]] = []
        index = self.order.index_at(position)
        for attempt in range(MAX_REPLACEMENTS + 1):
            if attempt:
                index = derive_seed(self.seed, "replacement", position, attempt) % len(self.dataset)
            try:
                return index, self.dataset.decode(index), bad
            except BadTileError as error:
                bad.append((error.path, error.reason))
        return index, None, bad
