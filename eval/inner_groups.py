"""The groups of training spots that the head `ridge-tuned` leaves out one after the other.

They should differ as what a fold holds out differs from its training set: a penalty that is tuned on other sections of
the same patient is too small for a new patient. So they are the coarsest of studies, patients, samples and contiguous
blocks of a sample's spots (in the order of its file) of which the training set has two or more. A random fold holds out
spots of the very samples it trains on, and leaves the other random parts out.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eval.fold_scores import SplitData
from eval.folds import PartFold
from eval.gram import Moments, moments, total
from eval.hest_data import Task
from eval.spots import Spots
from eval.tuned import Groups, usable

BLOCKS = 5


def inner_groups(s: SplitData, fold: PartFold, parts: Sequence[Moments]) -> Groups:
    """The groups of a fold's training spots, with all genes of the task; `parts` are the moments of the split's."""
    training = {p: parts[p] for p in fold.train if parts[p].n}
    if s.split.name == "random" and len(usable([m.n for m in training.values()])) >= 2:
        return Groups("part", tuple(training.values()))
    rows = s.spots.rows(fold.train)
    for level in ("study", "patient", "sample"):
        owners = _owners(s.task, rows, level)
        names = sorted(set(owners.values()))
        sizes = [sum(len(r) for sample, r in rows.items() if owners[sample] == name) for name in names]
        if "" in names or len(usable(sizes)) < 2:
            continue
        of_part = {p: {owners[sample] for sample in s.split.samples([p])} for p in training}
        if all(len(own) == 1 for own in of_part.values()):  # then no spot need be read again
            return Groups(level, tuple(total([training[p] for p in training if of_part[p] == {n}]) for n in names))
        labels = {sample: np.full(len(r), names.index(owners[sample])) for sample, r in rows.items()}
        return Groups(level, _moments(s, rows, labels, len(names), parts))
    n, start, blocks = sum(map(len, rows.values())), 0, {}
    count = min(BLOCKS, max(1, n // 2))
    for sample, r in rows.items():
        blocks[sample] = (start + np.arange(len(r))) * count // n
        start += len(r)
    return Groups("block", _moments(s, rows, blocks, count, parts))


def _owners(task: Task, samples: Mapping[str, object], level: Literal["study", "patient", "sample"]) -> dict[str, str]:
    """Sample -> its study, patient or own name; empty where unknown."""
    if level == "sample":
        return {name: name for name in samples}
    return {name: getattr(task.origin(name), level) or "" for name in samples}


def _moments(
    s: SplitData,
    rows: Mapping[str, NDArray[np.intp]],
    groups: Mapping[str, NDArray[np.intp]],
    count: int,
    parts: Sequence[Moments],
) -> tuple[Moments, ...]:
    """Moments of each of `count` groups from a pass over the training spots; `groups` has one for each of `rows`."""
    labels = {name: np.full(len(s.task.expression[name]), count) for name in rows}
    for name, chosen in rows.items():
        labels[name][chosen] = groups[name]
    spots = Spots(s.features, s.task.expression, labels)
    shift = parts[0].shift.cpu().numpy()
    return tuple(moments(spots.batches([g]), shift, len(s.task.genes), s.device) for g in range(count))
