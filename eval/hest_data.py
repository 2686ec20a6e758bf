"""Reads a task of the public hest-bench layout, checks it, and aligns expression to patches by barcode.

Layout: `<task>/patches/<sample>.h5` (`img` N x H x W x 3 uint8, `barcode` N), `<task>/adata/<sample>.h5ad` (raw counts,
index = barcode), `<task>/splits/train_i.csv, test_i.csv`, `<task>/var_50genes.json`, optionally `<task>/samples.csv`.
The patches file decides which spots exist and in which order; spots of the h5ad without a patch are not used.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import anndata
import h5py
import numpy as np
from numpy.typing import NDArray

from eval.errors import EvalError, first_few, nearest
from eval.genes import log1p_counts, read_panel
from eval.splits import Fold, Sample, read_folds, read_patients


@dataclass(frozen=True)
class Task:
    """A checked task: `expression` holds, for each sample, the log1p counts (N, G) in the order of its patches."""

    name: str
    genes: tuple[str, ...]
    folds: tuple[Fold, ...]
    samples: tuple[Sample, ...]
    patients: dict[str, str]
    expression: dict[str, NDArray[np.float64]]
    content: dict[str, str]  # sample -> sha256 of its patches file

    @property
    def data_hash(self) -> str:
        """sha256 of all that decides a score besides the encoder: genes, folds, expression and patches."""
        digest = hashlib.sha256(json.dumps([self.genes, self.content], sort_keys=True).encode())
        for fold in self.folds:
            sides = [[s.name for s in fold.train], [s.name for s in fold.test]]
            digest.update(json.dumps([fold.index, sides]).encode())
        for name in sorted(self.expression):
            digest.update(self.expression[name].tobytes())
        return digest.hexdigest()


def load_task(bench_root: Path, name: str) -> Task:
    """Load and check the whole task; nothing is embedded yet, so bad input shows before the long part.

    Raises:
        EvalError: any of the layout's rules is broken; the message names the file, the rule and the fix.
    """
    root = _task_root(bench_root, name)
    folds = read_folds(root)
    genes = read_panel(root)
    by_name: dict[str, Sample] = {}
    for sample in (s for fold in folds for s in fold.train + fold.test):
        if by_name.setdefault(sample.name, sample) != sample:
            raise EvalError(
                f"{root / 'splits'}: sample {sample.name} has different files in different folds "
                f"({by_name[sample.name].patches.name}, {sample.patches.name}); one name stands for one pair of files."
            )
    samples = tuple(by_name.values())
    expression = {}
    for sample in samples:
        counts = read_counts(sample.expression, read_barcodes(sample.patches), genes)
        expression[sample.name] = log1p_counts(counts, genes, sample.expression)
    content = {s.name: file_hash(s.patches) for s in samples}
    return Task(name, genes, folds, samples, read_patients(root), expression, content)


def read_barcodes(path: Path) -> list[str]:
    """Return the N barcodes of a patches file after checking its images and barcodes.

    Raises:
        EvalError: unreadable file, images that are not (N, H, W, 3) uint8, no or repeated barcodes, other lengths.
    """
    with open_h5(path) as file:
        if "img" not in file:
            raise EvalError(f"{path}: no dataset 'img'; found {first_few(file.keys(), 10)}. Store patches as 'img'.")
        shape, dtype = file["img"].shape, file["img"].dtype
        if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8 or 0 in shape:
            raise EvalError(
                f"{path}: 'img' is {dtype} of shape {shape}; it must be uint8 RGB of shape (N, H, W, 3) with N >= 1. "
                "Convert the patches (drop alpha, scale to 0..255)."
            )
        key = next((k for k in ("barcode", "barcodes") if k in file), None)
        if key is None:
            raise EvalError(f"{path}: no dataset 'barcode'; found {first_few(file.keys(), 10)}. Add one per patch.")
        raw = np.asarray(file[key][()]).reshape(-1)
    barcodes = [b.decode() if isinstance(b, bytes) else str(b) for b in raw]
    if len(barcodes) != shape[0]:
        raise EvalError(f"{path}: {shape[0]} patches but {len(barcodes)} barcodes; there must be one for each patch.")
    if len(set(barcodes)) < len(barcodes):
        twice = sorted({b for b in barcodes if barcodes.count(b) > 1})
        raise EvalError(
            f"{path}: duplicate barcode(s): {first_few(twice)}. A barcode names one spot: remove or rename."
        )
    return barcodes


def read_counts(path: Path, barcodes: list[str], genes: tuple[str, ...]) -> NDArray[np.float64]:
    """Return the values of X for `barcodes` x `genes`, (N, G), in exactly that order.

    Raises:
        EvalError: unreadable file, a barcode or a gene that the file lacks, or one that it has twice.
    """
    try:
        adata = anndata.read_h5ad(path)
    except Exception as error:  # anndata wraps errors of many libraries in types of its own
        raise EvalError(f"{path}: not a readable h5ad file ({error}). Download or write it again.") from error
    if adata.X is None:
        raise EvalError(f"{path}: X is empty; the raw counts must be in X.")
    rows = _positions(adata.obs_names.astype(str).to_numpy(), barcodes, path, "barcode")
    columns = _positions(adata.var_names.astype(str).to_numpy(), genes, path, "gene")
    block = adata.X[:, columns]
    dense = block.toarray() if hasattr(block, "toarray") else np.asarray(block)
    return np.asarray(dense[rows], dtype=np.float64)


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes: its identity, whatever its name and time stamp."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_h5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading; EvalError where it is not one."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise EvalError(f"{path}: not a readable HDF5 file ({error}). Download or write it again.") from error


def _task_root(bench_root: Path, name: str) -> Path:
    if not bench_root.is_dir():
        parent = bench_root.absolute().parent
        folders = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
        raise EvalError(f"bench root {bench_root}: no such folder. {nearest(bench_root.name, folders)}")
    root = bench_root / name
    if not root.is_dir():
        tasks = [p.name for p in bench_root.iterdir() if p.is_dir() and (p / "splits").is_dir()]
        raise EvalError(f"task {name!r}: no such folder in {bench_root}. {nearest(name, tasks)}")
    return root


def _positions(have: NDArray[np.str_], want: list[str] | tuple[str, ...], path: Path, what: str) -> list[int]:
    position: dict[str, int] = {}
    repeated = set()
    for i, value in enumerate(have):
        if value in position:
            repeated.add(value)
        position[value] = i
    if absent := [w for w in want if w not in position]:
        rule = {
            "barcode": "Every patch needs its spot: remove those patches, or use the h5ad they were made from.",
            "gene": "Every gene of the panel must be measured in every sample: change the panel or the file.",
        }[what]
        raise EvalError(f"{path}: {len(absent)} of {len(want)} {what}s absent: {first_few(absent)}. {rule}")
    if ambiguous := [w for w in want if w in repeated]:
        raise EvalError(
            f"{path}: {len(ambiguous)} duplicate {what}(s): {first_few(ambiguous)}. Names must be unique; remove or "
            "rename the others."
        )
    return [position[w] for w in want]
