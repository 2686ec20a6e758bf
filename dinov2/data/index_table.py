"""Columns of numbers and names that processes share: NumPy arrays mapped from one file instead of copied to each.

The file is a safetensors file (https://huggingface.co/docs/safetensors), so that other programs can read it. A table
pickles as the name of its file, and is mapped again where it is unpickled; a table without a file pickles whole.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from dinov2.data.errors import DatasetError
from dinov2.utils.files import replacing

VOLATILE = ("watched_states",)  # columns that hold times
_DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}


class IndexTable:
    """Named columns with a few facts about them.

    Args:
        columns: arrays (n,) of uint8, uint32, int32 or int64.
        facts: what the columns were made from; must fit JSON.
    """

    def __init__(self, columns: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
        self.columns = dict(columns)
        self.facts = dict(facts)
        self._path: Path | None = None
        self._identity = ""

    def save(self, path: Path) -> "IndexTable":
        """Write the table, whole or not at all, and return it mapped from there; raises `OSError`."""
        facts = {"facts": json.dumps(self.facts), "identity": self._hash()}
        with replacing(path) as temporary:
            save_file(self.columns, temporary, facts)
        return IndexTable.open(path)

    @classmethod
    def open(cls, path: Path) -> "IndexTable":
        """Map a table.

        Raises:
            OSError: there is no such file.
            ValueError: the file is damaged.
        """
        with open(path, "rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            if header_size > path.stat().st_size:
                raise ValueError(f"{path} is no index: its header would take {header_size} bytes")
            header = json.loads(file.read(header_size))
        try:
            metadata = header.pop("__metadata__")
            table = cls({}, json.loads(metadata["facts"]))
            table._identity = metadata["identity"]
            whole = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + header_size) if _bytes(header) else b""
            for name, entry in header.items():
                start, end = entry["data_offsets"]
                if end > len(whole):
                    raise ValueError(f"{path} ends within column {name}")
                # An ndarray over the mapping: memmap's own subclass makes every access slower.
                table.columns[name] = np.frombuffer(whole[start:end], _DTYPES[entry["dtype"]])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is no index: {error!r}") from error
        table._path = path
        return table

    def _hash(self) -> str:
        """SHA-256 (hex) of the columns, so that several processes that list the same at once make the same table."""
        digest = hashlib.sha256()
        for name, column in sorted(self.columns.items()):
            if name not in VOLATILE:
                digest.update(f"{name}|{column.dtype}|{len(column)}|".encode())
                digest.update(column.data)
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        if self._path is None:
            return self.__dict__
        return {"path": self._path, "identity": self._identity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "path" not in state:
            self.__dict__.update(state)
            return
        path: Path = state["path"]
        try:
            table = IndexTable.open(path)
        except (OSError, ValueError) as error:
            raise DatasetError(f"the index {path} cannot be opened in this worker: {error}; start again") from error
        if table._identity != state["identity"]:
            raise DatasetError(f"the index {path} was made anew while the run was starting; start again")
        self.__dict__.update(table.__dict__)


def _bytes(header: Mapping[str, Any]) -> int:
    return max((entry["data_offsets"][1] for entry in header.values()), default=0)
