"""Ways of holding spots out: the benchmark's given folds, tenths of all spots, one study at a time.

A `Split` assigns every spot to a part, and a fold names the parts it trains and tests on. Parts are samples for given
folds, studies for `loso`, and random tenths of the spots of all studies for `random`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold

from eval.errors import EvalError, first_few
from eval.splits import Fold

SplitName = Literal["given", "random", "loso"]
Labels = Mapping[str, NDArray[np.intp]]


@dataclass(frozen=True)
class PartFold:
    """One fold: indices of the parts it trains and tests on, and what it is called in tables.

    `columns` are the genes it scores, as indices into the task's; None for all. `panel` says what they were chosen from
    where the fold has a panel of its own.
    """

    name: str
    train: tuple[int, ...]
    test: tuple[int, ...]
    columns: tuple[int, ...] | None = None
    panel: Mapping[str, int | None] | None = None


@dataclass(frozen=True)
class Split:
    """`labels` gives, for each sample, the part of each of its spots, (N,); `parts` names the parts."""

    name: SplitName
    parts: tuple[str, ...]
    labels: Labels
    folds: tuple[PartFold, ...]

    def samples(self, parts: Sequence[int]) -> list[str]:
        """Names of the samples that have a spot in one of the parts, in order."""
        return [name for name, labels in self.labels.items() if np.isin(labels, parts).any()]

    def scored(self, n_genes: int) -> list[int]:
        """Indices, ascending, of those of the task's `n_genes` that at least one fold scores."""
        return sorted({c for f in self.folds for c in (range(n_genes) if f.columns is None else f.columns)})


def given_split(folds: Sequence[Fold], counts: Mapping[str, int]) -> Split:
    """The folds of the task's tables; `counts` is the number of spots of each sample."""
    names = tuple(counts)
    index = {name: i for i, name in enumerate(names)}
    labels = {name: np.full(n, index[name]) for name, n in counts.items()}

    def side(fold: Fold, which: str) -> tuple[int, ...]:
        return tuple(index[s.name] for s in getattr(fold, which))

    return Split(
        "given", names, labels, tuple(PartFold(str(f.index), side(f, "train"), side(f, "test")) for f in folds)
    )


def random_split(counts: Mapping[str, int], count: int = 10, seed: int = 0) -> Split:
    """`count` folds over the spots of all samples together, as scikit-learn's shuffled KFold draws them.

    Raises:
        EvalError: fewer than two folds, or fewer spots than folds.
    """
    n = sum(counts.values())
    if not 2 <= count <= n:
        raise EvalError(f"{count} random folds of {n} spots: there must be at least two, and a spot for each of them.")
    part = np.empty(n, dtype=np.intp)
    for i, (_, test) in enumerate(KFold(count, shuffle=True, random_state=seed).split(part)):
        part[test] = i
    ends = np.cumsum(list(counts.values()))
    labels = dict(zip(counts, np.split(part, ends[:-1]), strict=True))
    return Split("random", tuple(str(i) for i in range(count)), labels, _leave_one_out([str(i) for i in range(count)]))


def loso_split(counts: Mapping[str, int], studies: Mapping[str, str]) -> Split:
    """One fold a study, in alphabetical order: all samples of the study are held out.

    Raises:
        EvalError: a sample without a study, or a single study.
    """
    if unknown := [name for name in counts if not studies.get(name)]:
        raise EvalError(
            f"--split loso: no study for sample {first_few(unknown)}. Fill the column 'study' of the manifest."
        )
    names = sorted({studies[name] for name in counts})
    if len(names) < 2:
        raise EvalError(
            f"--split loso: all {len(counts)} samples are of one study ({names[0]!r}); leaving one out needs two or "
            "more. Add samples of another study to the manifest, or use --split random."
        )
    labels = {name: np.full(n, names.index(studies[name])) for name, n in counts.items()}
    return Split("loso", tuple(names), labels, _leave_one_out(names))


def _leave_one_out(names: Sequence[str]) -> tuple[PartFold, ...]:
    every = range(len(names))
    return tuple(PartFold(name, tuple(j for j in every if j != i), (i,)) for i, name in enumerate(names))
