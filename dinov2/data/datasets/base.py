"""What the loader asks of a data set."""

from typing import Protocol, runtime_checkable

from PIL import Image


@runtime_checkable
class TileDataset(Protocol):
    """A fixed, ordered collection of RGB tiles. Instances are sent to worker processes, so they must pickle."""

    def __len__(self) -> int:
        """Number of tiles, at least 1."""
        ...

    def decode(self, index: int) -> Image.Image:
        """Tile `index` as an RGB image of any size.

        Raises:
            BadTileError: the tile exists in the listing but cannot be decoded.
        """
        ...

    def path(self, index: int) -> str:
        """Where tile `index` comes from, for messages: a file name, or whatever lets a person find it."""
        ...
