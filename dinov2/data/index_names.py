"""Millions of names in two columns: their bytes one after another, and where each ends."""

import os
from array import array

import numpy as np
from numpy.typing import NDArray


class NameColumns:
    """Names as they are gathered; `columns` gives them as arrays."""

    def __init__(self) -> None:
        self._blob = bytearray()
        self._ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, name: str) -> None:
        """Add a name."""
        self._blob += os.fsencode(name)
        self._ends.append(len(self._blob))

    def columns(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return bytes (total,) and bounds (n + 1,): name i is `bytes[bounds[i] : bounds[i + 1]]`."""
        return np.frombuffer(self._blob, np.uint8), np.frombuffer(self._ends, np.int64)


def name_at(blob: NDArray[np.uint8], bounds: NDArray[np.int64], index: int) -> str:
    """Return one name from the two columns.

    Raises:
        IndexError: `index` is not in 0 .. n - 1.
    """
    if not 0 <= index < len(bounds) - 1:
        raise IndexError(f"item {index} is not in 0 .. {len(bounds) - 2}")
    return os.fsdecode(blob[bounds[index] : bounds[index + 1]].tobytes())
