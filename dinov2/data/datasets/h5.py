"""Tiles in HDF5 files, one file a slide or section."""

import os

import h5py
import numpy as np
from torch import Tensor

from dinov2.data.datasets.damage import Damage
from dinov2.data.datasets.decode import pixels_to_tensor
from dinov2.data.datasets.file_listing import FileListing
from dinov2.data.datasets.h5_index import SLOW, index_h5, pixels
from dinov2.data.datasets.handles import OpenFiles
from dinov2.data.datasets.registry import register_dataset
from dinov2.data.errors import BadTileError, DatasetError
from dinov2.data.index_cache import kept_or_listed
from dinov2.data.skipped import DAMAGED, Skipped, warn_of_skipped

SUFFIXES = (".h5", ".hdf5")


@register_dataset("H5")
class H5:
    """Every tile of the HDF5 files below a folder; implements `TileDataset`, `NamedTiles`, `PlacedTiles`
    and `Listed`.

    Tiles are uint8 (N, H, W, 3) under `img` or `imgs`.

    A file that cannot be opened at all is a damaged file, see `refuse_damage`, and in the place of its tiles is one bad
    one; else its unreadable tiles are bad tiles. A process keeps at most 256 files open, and no more than a quarter of
    what the system allows (`ulimit -n`): of more files, most tiles wait for one to be opened.

    Args:
        root: a folder, searched at any depth, or one file.
        refresh: `auto` (default), `always` or `never`: when to look into many files anew, see `index_cache`.

    Raises:
        DatasetError: no such folder, no file, no tile, a file without pixels (coordinates only, for example), or pixels
            of another shape or type.
    """

    def __init__(self, root: str, refresh: str = "auto") -> None:
        path = os.path.abspath(os.path.expanduser(root))
        self.damage: list[Damage] = []
        if os.path.isfile(path):
            self._root, self._paths = os.path.dirname(path), [path]
        else:
            listing = FileListing("H5", root, SUFFIXES, refresh)
            real: dict[str, str] = {}
            skipped = Skipped()
            for name in map(listing.path, range(len(listing))):
                if real.setdefault(os.path.realpath(name), name) != name:
                    skipped.add(name, "a file that is read under another name")
            warn_of_skipped(f"H5:root={root}", skipped.facts())
            self._root, self._paths = listing.root, sorted(real.values())
            self.damage.append(Damage.from_facts(f"H5:root={root}", "files and links", len(listing), listing.facts))
        self._table = kept_or_listed(
            "H5", self._paths, refresh, lambda table: int(table.columns["ends"][-1]), lambda: index_h5(self._paths)
        )
        facts = self._table.facts
        for key in (DAMAGED, SLOW):
            warn_of_skipped(f"H5:root={root}", facts, key)
        good = len(self._paths) - facts[DAMAGED]["count"]
        self.damage.append(Damage.from_facts(f"H5:root={root}", "files", good, facts))
        if not (self._table.columns["counts"] > 0).any():
            raise DatasetError(
                f"H5:root={root}: no readable tile in {len(self._paths)} files, such as {self._paths[0]}"
            )
        self._files = OpenFiles(_open, h5py.File.close)

    def __len__(self) -> int:
        return int(self._table.columns["ends"][-1])

    def locate(self, index: int) -> tuple[str, int]:
        """File and row of tile `index`.

        Raises:
            IndexError: there is no such tile.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"tile {index} is not in 0 .. {len(self) - 1}")
        ends = self._table.columns["ends"]
        number = int(np.searchsorted(ends, index, side="right"))
        return self._paths[number], index - (int(ends[number - 1]) if number else 0)

    def path(self, index: int) -> str:
        """`FILE/ROW` of tile `index`."""
        path, row = self.locate(index)
        return f"{path}/{row}"

    def name(self, index: int) -> str:
        """Name of the file of tile `index`, relative to the root and without suffix, and the row."""
        path, row = self.locate(index)
        return f"{os.path.splitext(os.path.relpath(path, self._root))[0]}/{row:06d}"

    def place(self, index: int) -> tuple[int, int] | None:
        """Row of tile `index` in `coords` (N, 2); None where the file has none; raises `BadTileError`."""
        path, row = self.locate(index)
        try:
            with self._files.open(path) as file:
                coords = file.get("coords")
                if getattr(coords, "shape", None) != (len(pixels(file, path)), 2):
                    return None
                x, y = coords[row]
                return int(x), int(y)
        except Exception as error:  # a damaged file makes HDF5 raise OSError, RuntimeError, KeyError, ...
            raise BadTileError(f"{path}/{row}", f"coords: {type(error).__name__}: {error}") from error

    def decode(self, index: int) -> Tensor:
        """Tile `index` as uint8 (3, H, W); raises `BadTileError`."""
        path, row = self.locate(index)
        try:
            with self._files.open(path) as file:
                return pixels_to_tensor(pixels(file, path)[row])
        except Exception as error:  # a damaged file makes HDF5 raise OSError, RuntimeError, KeyError, ...
            raise BadTileError(f"{path}/{row}", f"{type(error).__name__}: {error}") from error


def _open(path: str) -> h5py.File:
    return h5py.File(path, "r")
