"""Scores of one fold: predicts the held-out spots in batches, and keeps sums of them for each sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eval.errors import EvalError
from eval.folds import PartFold, Split
from eval.heads import Fitted
from eval.hest_data import Task
from eval.metrics import Correlations, Sums, correlations, errors, sums
from eval.spots import BATCH, Features, Spots


@dataclass(frozen=True)
class SplitData:
    """What the folds of a split share."""

    features: Features
    task: Task
    split: Split
    device: str

    @property
    def spots(self) -> Spots:
        """All spots with their parts."""
        return Spots(self.features, self.task.expression, self.split.labels)


def predict_fold(
    s: SplitData,
    fold: PartFold,
    fitted: Fitted,
    columns: NDArray[np.intp],
    centre: NDArray[np.float64],
    keep: Sequence[int],
    kept: Mapping[str, NDArray[np.float32]],
) -> dict[str, Sums]:
    """Predict the held-out spots of a fold and sum them.

    Args:
        s: what the folds of the split share.
        fold: the fold.
        fitted: its head, for the G genes of `columns`.
        columns: the fold's genes, as indices into the task's, (G,).
        centre: what sums are counted from, for all genes of the task.
        keep: genes whose predictions are wanted, as indices into the task's.
        kept: sample -> (N, len(keep)), into which these predictions are written, training mean included.

    Returns:
        Sums over the fold's genes for each held-out sample.
    """
    middle = torch.as_tensor(centre[columns], device=s.device)
    add = torch.zeros_like(middle) if fitted.has_mean else fitted.target_mean
    wanted = [(i, int(np.flatnonzero(columns == gene)[0])) for i, gene in enumerate(keep) if gene in columns]
    found: dict[str, Sums] = {}
    for name, rows in s.spots.rows(fold.test).items():
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            X = torch.as_tensor(s.features[name][some], device=s.device).double()  # (B, D)
            targets = s.task.expression[name][some]
            Y = torch.as_tensor(targets if fold.columns is None else targets[:, columns], device=s.device)  # (B, G)
            predicted = fitted.predictor.predict(X) + (add - middle)  # (B, G)
            batch = sums(Y - middle, predicted, -add)
            found[name] = found[name] + batch if name in found else batch
            for i, column in wanted:
                kept[name][some, i] = (predicted[:, column] + middle[column]).cpu().numpy()
    return found


def score_fold(
    task: Task, fold: PartFold, columns: NDArray[np.intp], by_sample: Sequence[Sums]
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Return the record of the fold, and its correlations over all genes of the task, NaN where it scores none.

    Raises:
        EvalError: not one gene has a correlation.
    """
    together = by_sample[0]
    for other in by_sample[1:]:
        together = together + other
    scores = correlations(together)
    genes = [task.genes[i] for i in columns]
    if np.isnan(scores.pcc).all():
        raise EvalError(
            f"task {task.name}, fold {fold.name}: no gene has a correlation (first of {len(genes)}: "
            f"{next(iter(scores.excluded.values()))}). An encoder that gives every patch the same "
            "embedding does this; so does a held-out sample of one spot."
        )
    record = {
        "fold": fold.name,
        "n_test": int(together.n[0]),
        "pcc": scores.mean(),
        "pcc10": scores.top(10),
        **errors(together),
        "n_excluded_genes": len(scores.excluded),
        "excluded_genes": {genes[i]: reason for i, reason in scores.excluded.items()},
        "gene_pcc": _named(genes, scores),
    }
    every = np.full(len(task.genes), np.nan)
    every[columns] = scores.pcc
    return record, every


def _named(genes: Sequence[str], scores: Correlations) -> dict[str, float]:
    return {g: float(r) for g, r in zip(genes, scores.pcc, strict=True) if not np.isnan(r)}
