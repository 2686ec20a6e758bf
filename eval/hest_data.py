"""A task: samples in the public hest-bench layout, with expression aligned to patches by barcode.

Layout: `<task>/patches/<sample>.h5` (`img` N x H x W x 3 uint8, `barcode` N), `<task>/adata/<sample>.h5ad` (raw counts,
index = barcode), `<task>/splits/train_i.csv, test_i.csv`, `<task>/var_50genes.json`, optionally `<task>/samples.csv`.
The patches file decides which spots exist and in which order; spots of the h5ad without a patch are not used. The
target is log1p of the raw counts: the public hest-bench does not normalise a spot by its total, so neither do we.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from eval.errors import EvalError, first_few, nearest
from eval.expression import check_raw, read_counts
from eval.file_hashes import file_hash, sample_hashes
from eval.folds import Split, given_split
from eval.genes import PANEL_FILE, chosen_over, read_panel
from eval.manifest import MANIFEST_FILE, UNKNOWN, Origin, read_manifest
from eval.splits import Sample, read_folds


@dataclass(frozen=True)
class Task:
    """A checked task: `expression` holds, for each sample, the log1p counts (N, G) in the order of its patches.

    `panel` records how the genes were chosen, `content` and `counts` the sha256 of each sample's patches and h5ad file.
    """

    name: str
    genes: tuple[str, ...]
    samples: tuple[Sample, ...]
    origins: Mapping[str, Origin]
    expression: Mapping[str, NDArray[np.float64]]
    content: Mapping[str, str]
    splits: tuple[Split, ...]
    panel: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, str] = field(default_factory=dict)

    def data_hash(self, split: Split) -> str:
        """sha256 of all that decides a score besides the encoder: genes, folds, expression and patches.

        Genes that no fold of the split scores, as those of another split's panels, play no part.
        """
        scored = split.scored(len(self.genes))
        genes = [self.genes[i] for i in scored]
        named = [None if f.columns is None else [self.genes[i] for i in f.columns] for f in split.folds]
        folds = [[f.name, f.train, f.test, columns] for f, columns in zip(split.folds, named, strict=True)]
        digest = hashlib.sha256(json.dumps([genes, dict(self.content), folds], sort_keys=True).encode())
        for name in sorted(self.expression):
            values = self.expression[name]
            digest.update((values if len(scored) == len(self.genes) else values[:, scored]).tobytes())
            digest.update(split.labels[name].astype(np.int64).tobytes())
        return digest.hexdigest()

    def content_hash(self) -> str:
        """sha256 of the samples' names and files, the same for every split, panel and fold seed."""
        return hashlib.sha256(json.dumps([dict(self.content), dict(self.counts)], sort_keys=True).encode()).hexdigest()

    def origin(self, sample: str) -> Origin:
        """Patient, study and slide of a sample, as far as known."""
        return self.origins.get(sample, UNKNOWN)


def load_task(
    bench_root: Path, name: str, *, hashes: Callable[[Path], str] = file_hash, progress: bool = False
) -> Task:
    """Load and check a task with given folds; nothing is embedded yet, so bad input shows before the long part.

    Args:
        bench_root: folder of the tasks.
        name: name of the task's folder.
        hashes: gives a file's sha256.
        progress: show a bar over the files.

    Raises:
        EvalError: any of the layout's rules is broken; the message names the file, the rule and the fix.
    """
    root = task_root(bench_root, name)
    folds = read_folds(root)
    genes = read_panel(root / PANEL_FILE)
    by_name: dict[str, Sample] = {}
    for sample in (s for fold in folds for s in fold.train + fold.test):
        if by_name.setdefault(sample.name, sample) != sample:
            raise EvalError(
                f"{root / 'splits'}: sample {sample.name} has different files in different folds "
                f"({by_name[sample.name].patches.name}, {sample.patches.name}); one name stands for one pair of files."
            )
    samples = tuple(by_name.values())
    expression = {}
    with tqdm(total=3 * len(samples), unit="file", desc=f"{name}: loading", delay=2, disable=not progress) as bar:
        for sample in samples:
            counts = read_counts(sample.expression, read_barcodes(sample.patches))
            values = counts.panel(genes)
            check_raw(counts)
            expression[sample.name] = np.log1p(values)
            bar.update()
        content, counted = sample_hashes(samples, hashes, bar)
    manifest = root / MANIFEST_FILE
    return Task(
        name=name,
        genes=genes,
        samples=samples,
        origins=read_manifest(manifest) if manifest.is_file() else {},
        expression=expression,
        content=content,
        splits=(given_split(folds, {n: len(e) for n, e in expression.items()}),),
        panel={"source": "file", "file": PANEL_FILE, "size": len(genes), "chosen_over": chosen_over(root / PANEL_FILE)},
        counts=counted,
    )


def read_barcodes(path: Path) -> list[str]:
    """Return the N barcodes of a patches file after checking its images, barcodes and coordinates.

    Raises:
        EvalError: unreadable file, images that are not (N, H, W, 3) uint8, no or repeated barcodes, coordinates that
            are no numbers (N, 2), other lengths.
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
        coords = (file["coords"].shape, file["coords"].dtype) if "coords" in file else None
    barcodes = [b.decode() if isinstance(b, bytes) else str(b) for b in raw]
    if len(barcodes) != shape[0]:
        raise EvalError(f"{path}: {shape[0]} patches but {len(barcodes)} barcodes; there must be one for each patch.")
    if len(set(barcodes)) < len(barcodes):
        twice = sorted(b for b, times in Counter(barcodes).items() if times > 1)
        raise EvalError(
            f"{path}: duplicate barcode(s): {first_few(twice)}. A barcode names one spot: remove or rename."
        )
    if coords is not None:
        _check_coords(path, *coords, n=shape[0])
    return barcodes


def _check_coords(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], n: int) -> None:
    if len(shape) != 2 or shape[0] != n or shape[1] < 2 or dtype.kind not in "iuf":
        raise EvalError(
            f"{path}: 'coords' is {dtype} of shape {shape}; it must hold the centres of the patches as numbers, "
            f"({n}, 2). Correct it, or remove it: only the report's maps need it."
        )


def open_h5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading; EvalError where it is not one."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise EvalError(f"{path}: not a readable HDF5 file ({error}). Download or write it again.") from error


def task_root(bench_root: Path, name: str) -> Path:
    """Folder of a task; EvalError naming the nearest where it does not exist."""
    if not bench_root.is_dir():
        parent = bench_root.absolute().parent
        folders = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
        raise EvalError(f"bench root {bench_root}: no such folder. {nearest(bench_root.name, folders)}")
    root = bench_root / name
    if not root.is_dir():
        tasks = [p.name for p in bench_root.iterdir() if p.is_dir() and (p / "patches").is_dir()]
        raise EvalError(f"task {name!r}: no such folder in {bench_root}. {nearest(name, tasks)}")
    return root
