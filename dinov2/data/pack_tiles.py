"""One tile on its way into a shard: read, checked by decoding, and encoded anew where asked."""

import io
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from dinov2.data.datasets import EncodedTiles, NamedTiles, PlacedTiles, TileDataset
from dinov2.data.datasets.decode import decode_bytes
from dinov2.data.errors import BadTileError, DatasetError

ORIGINAL, JPEG, PIXELS = "original", "jpeg", "pixels"


@dataclass(frozen=True)
class PackedTile:
    """What a shard takes: an image file or pixels (H, W, 3), or the reason why there is neither."""

    name: str
    path: str
    data: bytes | NDArray[np.uint8] | None
    reason: str = ""
    place: tuple[int, int] | None = None  # (x, y) in level-0 px, of pixels whose place is known


class TileReader:
    """Map-style data set for a torch DataLoader: index to `PackedTile`.

    Every tile is decoded, so that all that are packed are good.

    Args:
        dataset: the tiles.
        encoding: `original` keeps image files byte for byte and makes others PNG; `jpeg` encodes all anew, without
            subsampling of colour; `pixels` gives arrays.
        quality: of JPEG, 1 to 100.
    """

    def __init__(self, dataset: TileDataset, encoding: str, quality: int = 0) -> None:
        self.dataset = dataset
        self.encoding = encoding
        self.quality = quality
        # Asked once: whether an object fits a Protocol takes long to find out.
        self._named = dataset if isinstance(dataset, NamedTiles) else None
        self._placed = dataset if isinstance(dataset, PlacedTiles) and encoding == PIXELS else None
        self._files = dataset if isinstance(dataset, EncodedTiles) else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> PackedTile:
        path = self.dataset.path(index)
        name = self._named.name(index) if self._named is not None else ""
        try:
            if self._files is not None:
                file = self._files.encoded(index)
                tile = decode_bytes(file, path)  # (3, H, W)
                if self.encoding == ORIGINAL:
                    return PackedTile(member_name(index, name, posixpath.splitext(name)[1].lower()), path, file)
            else:
                tile = self.dataset.decode(index)  # (3, H, W)
            place = self._placed.place(index) if self._placed is not None else None
        except BadTileError as error:
            return PackedTile(name, error.path, None, error.reason)
        pixels = np.ascontiguousarray(tile.numpy().transpose(1, 2, 0))  # (H, W, 3)
        if self.encoding == PIXELS:
            return PackedTile(member_name(index, name, ""), path, pixels, place=place)
        if self.encoding == JPEG:
            encoded = simplejpeg.encode_jpeg(pixels, quality=self.quality, colorsubsampling="444")
            return PackedTile(member_name(index, name, ".jpg"), path, encoded)
        return PackedTile(member_name(index, name, ".png"), path, _png(pixels))


def member_name(index: int, name: str, suffix: str) -> str:
    """Name in a shard: the tile's number and own name, so that no two are the same, in its own folders.

    WebDataset takes what precedes the first dot of a file's name for the key of a sample: other dots become `_`.

    Raises:
        DatasetError: `name` is absolute or contains `..`.
    """
    if name.startswith("/") or ".." in name.split("/"):
        raise DatasetError(f"the data set calls tile {index} {name!r}; names must be relative and without '..'")
    folder, base = posixpath.split(name)
    stem = posixpath.splitext(base)[0].replace(".", "_")
    return posixpath.join(folder, f"{index:09d}{'-' if stem else ''}{stem}{suffix}")


def keep_list(tiles: Sequence[PackedTile]) -> list[PackedTile]:
    """Collate function of the DataLoader: tiles stay apart."""
    return list(tiles)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
