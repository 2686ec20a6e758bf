"""Images in tar shards, as WebDataset writes them, read in any order."""

import os

from torch import Tensor

from dinov2.data.datasets.damage import Damage
from dinov2.data.datasets.decode import decode_bytes
from dinov2.data.datasets.handles import OpenFiles
from dinov2.data.datasets.patterns import matching_files
from dinov2.data.datasets.registry import register_dataset
from dinov2.data.datasets.tar_index import index_tars
from dinov2.data.errors import BadTileError, DatasetError
from dinov2.data.index_cache import kept_or_listed
from dinov2.data.index_names import name_at
from dinov2.data.skipped import DAMAGED, SKIPPED, warn_of_skipped


@register_dataset("Tar")
class Tar:
    """Every image of some uncompressed tar files; implements `TileDataset`, `EncodedTiles` and `Listed`.

    Other members (labels, captions) are passed over. See `tar_index.tar_members` for damaged archives and duplicates;
    a shard that the pattern names twice is read once.

    Args:
        shards: file names with braces and wildcards, e.g. `/data/tiles-{000..099}.tar` or `/data/*.tar`.
        refresh: `auto` (default), `always` or `never`: when to index many tiles anew, see `index_cache`.

    Raises:
        DatasetError: no such shard, a compressed or damaged one, or no image in any of them.
    """

    def __init__(self, shards: str, refresh: str = "auto") -> None:
        self._shards = matching_files("Tar", shards)
        self._table = kept_or_listed(
            "Tar", self._shards, refresh, lambda table: len(table.columns["size"]), lambda: index_tars(self._shards)
        )
        facts, count = self._table.facts, len(self._shards)
        for key in (SKIPPED, DAMAGED):
            warn_of_skipped(f"Tar:shards={shards}", facts, key)
        self.damage = [Damage.from_facts(f"Tar:shards={shards}", "shards", count - facts[DAMAGED]["count"], facts)]
        if not len(self):
            raise DatasetError(f"Tar:shards={shards}: no image in {len(self._shards)} files")
        self._files = OpenFiles(_open, os.close)

    def __len__(self) -> int:
        return len(self._table.columns["size"])

    def name(self, index: int) -> str:
        """Name of tile `index` within its shard."""
        return name_at(self._table.columns["names"], self._table.columns["bounds"], index)

    def path(self, index: int) -> str:
        """`SHARD/NAME` of tile `index`."""
        return f"{self._shards[self._table.columns['shard'][index]]}/{self.name(index)}"

    def encoded(self, index: int) -> bytes:
        """The image file of tile `index`; raises `BadTileError`."""
        columns = self._table.columns
        size = int(columns["size"][index])
        if size < 0:
            raise BadTileError(self.path(index), "the tar file is cut off within it")
        try:
            with self._files.open(self._shards[columns["shard"][index]]) as descriptor:
                data = os.pread(descriptor, size, int(columns["offset"][index]))
        except OSError as error:
            raise BadTileError(self.path(index), f"{type(error).__name__}: {error}") from error
        if len(data) < size:
            raise BadTileError(self.path(index), "the tar file has become shorter since it was indexed")
        return data

    def decode(self, index: int) -> Tensor:
        """Tile `index` as uint8 (3, H, W); raises `BadTileError`."""
        return decode_bytes(self.encoded(index), self.path(index))


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
