"""A folder tree of image files."""

import os
from collections.abc import Iterator

from PIL import Image

from dinov2.data.datasets.decode import decode_file
from dinov2.data.datasets.registry import register_dataset
from dinov2.data.errors import DatasetError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


@register_dataset("Folder")
class Folder:
    """Every image file below `root`, at any depth, in sorted order; implements `TileDataset`.

    Names that start with a dot are skipped. Linked folders are followed, but each real folder is read once, under the
    first of its names in sorted order, so links that lead back do no harm.

    Args:
        root: the folder.

    Raises:
        DatasetError: `root` is missing, is no folder, or holds no image.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(os.path.expanduser(root))
        if not os.path.isdir(self.root):
            what = "is not a folder" if os.path.exists(self.root) else "does not exist"
            raise DatasetError(f"Folder:root={root}: {self.root} {what}")
        self._names = list(_image_files(self.root, "", set()))
        if not self._names:
            raise DatasetError(f"Folder:root={root}: no image below {self.root}; looked for {', '.join(SUFFIXES)}")

    def __len__(self) -> int:
        return len(self._names)

    def path(self, index: int) -> str:
        """Absolute file name of tile `index`."""
        return os.path.join(self.root, self._names[index])

    def decode(self, index: int) -> Image.Image:
        """Tile `index` as an RGB image; raises `BadTileError`."""
        return decode_file(self.path(index))


def _image_files(root: str, below: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    folder = os.path.join(root, below)
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        return
    seen.add(identity)
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in visible:
        name = os.path.join(below, entry.name)
        if entry.is_dir():
            yield from _image_files(root, name, seen)
        elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
            yield name
