"""Data sets by string: `make_dataset("Folder:root=TILES")`. Importing this package registers the built-in kinds."""

from dinov2.data.datasets.base import TileDataset
from dinov2.data.datasets.folder import Folder
from dinov2.data.datasets.registry import list_datasets, make_dataset, register_dataset
from dinov2.data.datasets.slides import Slides

__all__ = ["Folder", "Slides", "TileDataset", "list_datasets", "make_dataset", "register_dataset"]
