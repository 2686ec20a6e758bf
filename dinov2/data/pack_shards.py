"""Shards as they are written: a tar of image files (WebDataset), or an HDF5 file with pixels as HEST keeps them."""

import io
import os
import tarfile
from pathlib import Path
from types import TracebackType
from typing import Protocol

import h5py
import numpy as np

from dinov2.data.errors import DatasetError
from dinov2.data.pack_tiles import PackedTile


class ShardWriter(Protocol):
    """A shard while it is written; a context manager that completes the file."""

    def add(self, tile: PackedTile) -> None:
        """Append a tile that has data."""
        ...

    def __enter__(self) -> "ShardWriter": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class TarShard:
    """A tar archive that depends on nothing but its tiles: no times, no owners.

    Args:
        path: of the file, replaced where it exists.
        capacity: tiles at most; not needed here.
    """

    def __init__(self, path: Path, capacity: int) -> None:
        del capacity
        self._archive = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115  (closed by __exit__)

    def add(self, tile: PackedTile) -> None:
        """Append a tile as one file."""
        assert isinstance(tile.data, bytes)
        info = tarfile.TarInfo(tile.name)
        info.size = len(tile.data)
        self._archive.addfile(info, io.BytesIO(tile.data))

    def __enter__(self) -> "TarShard":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._archive.close()


class H5Shard:
    """An HDF5 file: `img` uint8 (n, H, W, 3), a chunk a tile, `name` (n,) text, and, where the places of all tiles are
    known, `coords` int64 (n, 2) in level-0 px. Without a tile, `img` is (0, 1, 1, 3).

    It is made in memory and written at the end: where HDF5 itself meets a full disk, closing the file may crash.

    Args:
        path: of the file, replaced where it exists.
        capacity: tiles at most.
    """

    def __init__(self, path: Path, capacity: int) -> None:
        self._path = path
        self._content = io.BytesIO()
        self._file = h5py.File(self._content, "w")
        self._capacity = capacity
        self._pixels: h5py.Dataset | None = None
        self._names: list[str] = []
        self._places: list[tuple[int, int]] = []

    def add(self, tile: PackedTile) -> None:
        """Append a tile.

        Raises:
            DatasetError: it has another size than those before.
        """
        assert isinstance(tile.data, np.ndarray)
        shape = tile.data.shape
        if self._pixels is None:
            self._pixels = self._file.create_dataset(
                "img", (self._capacity, *shape), np.uint8, chunks=(1, *shape), maxshape=(None, *shape)
            )
        if self._pixels.shape[1:] != shape:
            expected = self._pixels.shape
            raise DatasetError(
                f"{tile.path} is {shape[1]} x {shape[0]} px, tiles before it are {expected[2]} x {expected[1]}; an h5 "
                "file holds tiles of one size: use --format tar"
            )
        self._pixels[len(self._names)] = tile.data
        self._names.append(tile.name)
        if tile.place is not None:
            self._places.append(tile.place)

    def __enter__(self) -> "H5Shard":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            count, text = len(self._names), h5py.string_dtype()
            if self._pixels is None:
                self._file.create_dataset("img", (0, 1, 1, 3), np.uint8)
            else:
                self._pixels.resize(count, axis=0)
            self._file.create_dataset("name", (count,), text, data=[os.fsencode(name) for name in self._names])
            if count and len(self._places) == count:
                self._file.create_dataset("coords", data=np.array(self._places, dtype=np.int64))
        if error is None:
            self._path.write_bytes(self._content.getbuffer())


SHARD_WRITERS: dict[str, type[TarShard] | type[H5Shard]] = {"tar": TarShard, "h5": H5Shard}
