"""Embeddings that stay on disk: arrays are mapped, so that the system reads and drops their pages as memory allows."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from eval.errors import EvalError


def mapped_dataset(path: Path, dataset: h5py.Dataset) -> NDArray[np.float32]:
    """The numbers of a dataset of the HDF5 file `path` as float32.

    Mapped where the file holds float32 in one piece, as those of the cache are; read where they are compressed, in
    chunks or of another type.
    """
    offset = dataset.id.get_offset()
    if offset is None or dataset.dtype != np.dtype("<f4") or not dataset.size:
        return np.asarray(dataset[()], dtype=np.float32)
    return np.asarray(np.memmap(path, dataset.dtype, "r", offset, dataset.shape))


def mapped_npy(path: Path) -> NDArray[np.float32]:
    """The array of a `.npy` file, mapped where it is float32, else read and converted; EvalError where it is none."""
    try:
        values: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise EvalError(f"{path}: not a readable .npy file ({error}). Write it with numpy.save.") from error
    return np.asarray(values, dtype=np.float32)
