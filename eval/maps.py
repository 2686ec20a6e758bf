"""Held-out predictions of a few genes, kept for pictures: `maps/<task>-<split>-<encoder>.npz`.

For each sample `<name>/coords` (N, 2), `<name>/measured` (N, K) and `<name>/predicted` (N, K), in log1p counts, and
`genes` (K,).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2.utils.files import replacing
from eval.errors import EvalError, nearest
from eval.hest_data import Task, open_h5

DEFAULT_GENES = 3


def map_genes(task: Task, wanted: Sequence[str] = ()) -> list[int]:
    """Indices of the wanted genes; without any, of the task's most variable ones.

    Raises:
        EvalError: a gene that the panel lacks.
    """
    if wanted:
        for gene in wanted:
            if gene not in task.genes:
                raise EvalError(f"--map-genes {gene}: not in the panel of {task.name}. {nearest(gene, task.genes)}")
        return [task.genes.index(gene) for gene in wanted]
    n = sum(len(y) for y in task.expression.values())
    mean = sum(y.sum(axis=0) for y in task.expression.values()) / n
    variance = sum(((y - mean) ** 2).sum(axis=0) for y in task.expression.values()) / n  # (G,)
    return np.argsort(-variance, kind="stable")[:DEFAULT_GENES].tolist()


def write_map(
    folder: Path,
    encoder_key: str,
    task: Task,
    split: str,
    predictions: Mapping[str, NDArray[np.float32]],
    genes: Sequence[int],
) -> str:
    """Write the file and return its name; `predictions` are those of `genes`, sample -> (N, K)."""
    arrays: dict[str, Any] = {"genes": np.array([task.genes[i] for i in genes])}
    for sample in task.samples:
        arrays[f"{sample.name}/coords"] = coordinates(sample.patches, len(task.expression[sample.name]))
        arrays[f"{sample.name}/measured"] = task.expression[sample.name][:, genes].astype(np.float32)
        arrays[f"{sample.name}/predicted"] = predictions[sample.name]
    name = f"{task.name}-{split}-{encoder_key[:12]}.npz"
    with replacing(folder / name) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return name


def read_map(path: Path) -> tuple[list[str], dict[str, dict[str, NDArray]]]:
    """Genes, and sample -> coords, measured, predicted."""
    with np.load(path, allow_pickle=False) as file:
        genes = file["genes"].tolist()
        samples: dict[str, dict[str, NDArray]] = {}
        for key in file.files:
            if "/" in key:
                sample, _, what = key.rpartition("/")
                samples.setdefault(sample, {})[what] = file[key]
    return genes, samples


def has_places(coords: NDArray) -> bool:
    """Whether coordinates (N, 2) lay the spots out; those of a patches file without any are all the same."""
    return bool(np.isfinite(coords).all() and np.ptp(coords, axis=0).any())


def coordinates(patches: Path, count: int) -> NDArray[np.float64]:
    """Centres of the patches (N, 2), in whatever unit the file has; all 0 where it has none."""
    with open_h5(patches) as file:
        found = np.asarray(file["coords"][()], dtype=np.float64) if "coords" in file else np.zeros((count, 2))
    return found.reshape(count, -1)[:, :2]
