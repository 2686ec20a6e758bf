"""Embeddings made elsewhere: `precomputed:FOLDER` with one `<sample>.h5` (or `.npy`) a sample.

An HDF5 file holds `embeddings` (or `features`), (N, D), and best also `barcode`, by which rows are put into the order
of the patches; without barcodes, and in a `.npy` file, rows must be in that order already.
"""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from eval.errors import EvalError, first_few
from eval.expression import positions
from eval.file_hashes import file_hash
from eval.hest_data import Task, open_h5, read_barcodes
from eval.mapped import mapped_dataset, mapped_npy

PREFIX = "precomputed:"
SUFFIXES = (".h5", ".npy")
KEYS = ("embeddings", "features")


class Precomputed:
    """Embeddings in a folder; `settings` identify them by the bytes of the files."""

    def __init__(self, spec: str) -> None:
        """Raises EvalError: the folder does not exist."""
        self.name = spec
        self.folder = Path(spec.removeprefix(PREFIX))
        if not self.folder.is_dir():
            raise EvalError(
                f"encoder {spec!r}: no such folder. Give a folder with one SAMPLE.h5 or SAMPLE.npy a sample."
            )

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """JSON-able, with `weights_hash` over the names and bytes of all embeddings in the folder."""
        files = sorted(p for p in self.folder.iterdir() if p.suffix in SUFFIXES and not p.name.startswith("."))
        digest = hashlib.sha256("".join(f"{p.name} {file_hash(p)}\n" for p in files).encode())
        return {"weights_hash": digest.hexdigest(), "pooling": "none"}

    def features(self, task: Task) -> dict[str, NDArray[np.float32]]:
        """Sample -> (N, D) in the order of the task's patches, mapped from the file where that is in this order.

        Raises:
            EvalError: a sample without a file, a file without embeddings, barcodes of another data set, another length.
        """
        return {s.name: self._read(self._path(s.name), s.patches) for s in task.samples}

    def _path(self, sample: str) -> Path:
        for suffix in SUFFIXES:
            path = self.folder / f"{sample}{suffix}"
            if path.is_file():
                return path
        found = first_few(sorted(p.name for p in self.folder.iterdir()))
        raise EvalError(f"encoder {self.name!r}: no {sample}.h5 or {sample}.npy there; found {found or 'nothing'}.")

    def _read(self, path: Path, patches: Path) -> NDArray[np.float32]:
        wanted = read_barcodes(patches)
        if path.suffix == ".npy":
            values = mapped_npy(path)
        else:
            with open_h5(path) as file:
                values, barcodes = self._datasets(file, path)
            if barcodes is not None:
                if len(barcodes) != len(values):
                    raise EvalError(f"{path}: {len(values)} embeddings but {len(barcodes)} barcodes.")
                order = positions(np.array(barcodes, dtype=str), wanted, path, "barcode")
                if order != list(range(len(values))):
                    values = values[order]
        if values.ndim != 2 or len(values) != len(wanted):
            raise EvalError(
                f"{path}: embeddings of shape {values.shape} for {len(wanted)} patches; they must be "
                f"({len(wanted)}, D), in the order of the patches. Store 'barcode' beside them, or embed these patches."
            )
        return values

    def _datasets(self, file: h5py.File, path: Path) -> tuple[NDArray[np.float32], list[str] | None]:
        key = next((k for k in KEYS if k in file), None)
        if key is None:
            raise EvalError(f"{path}: no dataset {' or '.join(KEYS)}; found {first_few(file.keys(), 10)}.")
        values = mapped_dataset(path, file[key])
        if values.ndim == 3 and 1 in values.shape[:2]:  # some tools write (1, N, D) or (N, 1, D)
            values = values.reshape(-1, values.shape[-1])
        name = next((k for k in ("barcode", "barcodes") if k in file), None)
        if name is None:
            return values, None
        raw = np.asarray(file[name][()]).reshape(-1)
        return values, [b.decode() if isinstance(b, bytes) else str(b) for b in raw]
