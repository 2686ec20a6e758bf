"""Folder trees of image files: `Folder`, and ImageNet's layout."""

import os

from torch import Tensor

from dinov2.data.datasets.base import IMAGE_SUFFIXES
from dinov2.data.datasets.damage import Damage
from dinov2.data.datasets.decode import decode_file, read_file
from dinov2.data.datasets.file_listing import FileListing
from dinov2.data.datasets.registry import register_dataset
from dinov2.data.errors import DatasetError
from dinov2.utils.suggest import did_you_mean

SPLITS = ("train", "val", "test")


@register_dataset("Folder")
class Folder:
    """Every image file below `root`, at any depth, in sorted order.

    Implements `TileDataset`, `EncodedTiles` and `Listed`.

    See `FileListing` for which files count.

    Args:
        root: the folder.
        refresh: `auto` (default), `always` or `never`: when to list a large folder anew, see `index_cache`.

    Raises:
        DatasetError: `root` is missing, is no folder, or holds no image.
    """

    def __init__(self, root: str, refresh: str = "auto") -> None:
        self._listing = FileListing("Folder", root, IMAGE_SUFFIXES, refresh)
        self.damage = [Damage.from_facts(f"Folder:root={root}", "files", len(self), self._listing.facts, tiles=True)]

    def __len__(self) -> int:
        return len(self._listing)

    def path(self, index: int) -> str:
        """Absolute file name of tile `index`."""
        return self._listing.path(index)

    def decode(self, index: int) -> Tensor:
        """Tile `index` as uint8 (3, H, W); raises `BadTileError`."""
        return decode_file(self.path(index))

    def encoded(self, index: int) -> bytes:
        """Content of the file of tile `index`; raises `BadTileError`."""
        return read_file(self.path(index))

    def name(self, index: int) -> str:
        """File name of tile `index` relative to the root."""
        return self._listing.name(index)


@register_dataset("ImageNet")
def imagenet(split: str, root: str, extra: str = "", refresh: str = "auto") -> Folder:
    """The images of one split of ImageNet, in folders of classes below `train`, `val` or `test` in `root`.

    Labels are not used in pretraining. `extra`, DINOv2's folder of its own listings, is accepted and not needed.

    Raises:
        DatasetError: an unknown split, or one that is not there.
    """
    if split.lower() not in SPLITS:
        raise DatasetError(f"ImageNet:split={split}{did_you_mean(split, [name.upper() for name in SPLITS])}")
    del extra
    return Folder(os.path.join(root, split.lower()), refresh)
