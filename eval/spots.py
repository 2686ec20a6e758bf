"""Embeddings and expression of a task's spots, read in batches by part; arrays may be mapped from disk."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.errors import EvalError
from eval.folds import Labels, Split
from eval.gram import Batch, Moments, moments
from eval.hest_data import Task

Features = Mapping[str, NDArray[np.float32]]
BATCH = 2048  # spots whose features and targets stay in a processor's cache while they are summed


@dataclass(frozen=True)
class Spots:
    """Samples' features (N, D) and targets (N, G), and the part that each spot belongs to."""

    features: Features
    targets: Mapping[str, NDArray[np.float64]]
    labels: Labels

    def rows(self, parts: Sequence[int]) -> dict[str, NDArray[np.intp]]:
        """Sample -> indices of its spots in these parts; samples without any are left out."""
        chosen = np.zeros(1 + max(int(labels.max()) for labels in self.labels.values()), dtype=bool)
        chosen[list(parts)] = True
        found = {name: np.flatnonzero(chosen[labels]) for name, labels in self.labels.items()}
        return {name: rows for name, rows in found.items() if len(rows)}

    def batches(self, parts: Sequence[int], size: int = BATCH) -> Iterator[Batch]:
        """Features and targets of the parts' spots, about `size` spots together."""
        chosen: list[Batch] = []
        for name, rows in self.rows(parts).items():
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                chosen.append((self.features[name][some], self.targets[name][some]))
                if sum(len(x) for x, _ in chosen) >= size:
                    yield _joined(chosen)
                    chosen = []
        if chosen:
            yield _joined(chosen)

    def gather(self, parts: Sequence[int]) -> Batch:
        """Features (N, D) and targets (N, G) of all spots of the parts, sample by sample."""
        return _joined([(self.features[n][r], self.targets[n][r]) for n, r in self.rows(parts).items()])


def part_moments(features: Features, task: Task, splits: Sequence[Split], device: str = "cpu") -> list[list[Moments]]:
    """Moments of every part of every split, from one pass over the spots.

    The spots are grouped by all splits together, as by study and tenth; a part is the sum of its groups. Only one group
    is held at a time: with many studies and wide features all of them would take gigabytes.
    """
    shape = [len(split.parts) for split in splits]
    codes = {
        n: np.ravel_multi_index([split.labels[n] for split in splits], shape) for n in task.expression
    }  # (N,) each
    used, index = np.unique(np.concatenate(list(codes.values())), return_inverse=True)
    groups = np.stack(np.unravel_index(used, shape), axis=1)  # (P, S): the part of each split that a group lies in
    ends = np.cumsum([len(c) for c in codes.values()])
    labels = dict(zip(codes, np.split(index, ends[:-1]), strict=True))
    spots = Spots(features, task.expression, labels)
    first = next(iter(task.expression))
    shift = np.asarray(features[first], dtype=np.float64).mean(axis=0)
    empty = moments((), shift, len(task.genes), device)
    parts = [[empty] * len(split.parts) for split in splits]
    for g, group in enumerate(groups):
        found = moments(spots.batches([g]), shift, len(task.genes), device)
        for own, p in zip(parts, group, strict=True):
            own[p] = own[p] + found
    return parts


def check_features(features: Features, task: Task) -> None:
    """Check that the embeddings are of this task's spots, of one width, and finite.

    Raises:
        EvalError: a sample without embeddings or with another number of them, widths that differ, NaN or infinity.
    """
    widths: dict[int, str] = {}
    for name, values in task.expression.items():
        if name not in features or len(features[name]) != len(values):
            found = len(features[name]) if name in features else "no"
            raise EvalError(
                f"task {task.name}: sample {name} has {len(values)} patches but {found} embeddings. Are they of "
                "another data set, or made before the patches changed? Embed these patches."
            )
        widths.setdefault(features[name].shape[1], name)
        bad = len(values) - int(np.isfinite(features[name]).all(axis=1).sum())
        if bad:
            raise EvalError(
                f"task {task.name}: {bad} embeddings of sample {name} are NaN or infinite; they must be finite. Look "
                "for NaN in the encoder's weights."
            )
    if len(widths) > 1:
        found = ", ".join(f"{width} ({name})" for width, name in widths.items())
        raise EvalError(f"task {task.name}: embeddings of different widths: {found}. Use one encoder for all samples.")


def _joined(batches: Sequence[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])
