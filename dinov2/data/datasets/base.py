"""What the loader asks of a data set."""

from typing import Protocol, runtime_checkable

from torch import Tensor

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")


@runtime_checkable
class TileDataset(Protocol):
    """A fixed, ordered collection of RGB tiles. Instances are sent to worker processes, so they must pickle."""

    def __len__(self) -> int:
        """Number of tiles, at least 1."""
        ...

    def decode(self, index: int) -> Tensor:
        """Tile `index` as contiguous uint8 RGB (3, H, W) of any size.

        Raises:
            BadTileError: the tile exists in the listing but cannot be decoded.
        """
        ...

    def path(self, index: int) -> str:
        """Where tile `index` comes from, for messages: a file name, or whatever lets a person find it."""
        ...


@runtime_checkable
class NamedTiles(Protocol):
    """What a data set offers beyond `TileDataset` so that packed tiles keep their names."""

    def name(self, index: int) -> str:
        """Name of tile `index` within the data set: relative, with `/` between folders."""
        ...


@runtime_checkable
class EncodedTiles(NamedTiles, Protocol):
    """What a data set of image files offers beyond `TileDataset` so that its tiles can be packed as they are."""

    def encoded(self, index: int) -> bytes:
        """The image file of tile `index`; its suffix is that of `name(index)`.

        Raises:
            BadTileError: it cannot be read.
        """
        ...


@runtime_checkable
class PlacedTiles(Protocol):
    """What a data set offers beyond `TileDataset` so that packed tiles keep their places on the slide."""

    def place(self, index: int) -> tuple[int, int] | None:
        """Top left corner (x, y) of tile `index` in level-0 px; None where it is not known.

        Raises:
            BadTileError: it cannot be read.
        """
        ...


@runtime_checkable
class Mixture(Protocol):
    """A data set that draws from several; its indices count through the parts in order. See `samplers.make_stream`."""

    parts: list[TileDataset]
    weights: list[float]  # shares of the samples, positive


def part_of(dataset: TileDataset, index: int) -> range:
    """Indices of the innermost part of a mixture that holds tile `index`; of any other data set all of them."""
    if isinstance(dataset, Mixture):
        start = 0
        for part in dataset.parts:
            if index < start + len(part):
                inner = part_of(part, index - start)
                return range(start + inner.start, start + inner.stop)
            start += len(part)
    return range(len(dataset))
