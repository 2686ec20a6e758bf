"""Data sets by string: `make_dataset("Folder:root=TILES")`. Importing this package registers the built-in kinds."""

from dinov2.data.datasets.base import EncodedTiles, Mixture, NamedTiles, PlacedTiles, TileDataset
from dinov2.data.datasets.folder import Folder, imagenet
from dinov2.data.datasets.h5 import H5
from dinov2.data.datasets.mix import Mix
from dinov2.data.datasets.registry import list_datasets, make_dataset, register_dataset
from dinov2.data.datasets.slides import Slides
from dinov2.data.datasets.tar import Tar

__all__ = [
    "H5",
    "EncodedTiles",
    "Folder",
    "Mix",
    "Mixture",
    "NamedTiles",
    "PlacedTiles",
    "Slides",
    "Tar",
    "TileDataset",
    "imagenet",
    "list_datasets",
    "make_dataset",
    "register_dataset",
]
