"""Both protocols' arithmetic: for each fold of a split, fit the head on the training spots and score the held-out ones.

Source: HEST-1k (arXiv 2406.16192) and the code of its benchmark: log1p counts, StandardScaler, PCA 256, ridge without
intercept with alpha = 100 / (features x genes), Pearson correlation per gene; PCC-10, MAE and MSE as in the MVHybrid
paper (arXiv 2508.00383). As a ridge without intercept on uncentred targets predicts only the deviation from the mean,
MAE and MSE mostly measure mean expression there; `mae_centred` and `mse_centred` score the prediction with the training
mean in it. The spots are read once for the Gram matrices of all parts and once for the predictions; every fold's
training set is a sum or difference of parts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from eval.errors import EvalError
from eval.folds import PartFold, Split
from eval.gram import Moments, moments, total
from eval.heads import Fitted, TrainingSet, fit_head
from eval.hest_data import Task
from eval.metrics import Correlations, correlations, mae, mean_std, mse
from eval.notes import notes
from eval.per_sample import sample_scores
from eval.settings import FitSettings
from eval.spots import Features, Spots, check_features

METRICS = ("pcc", "pcc10", "mae", "mse", "mae_centred", "mse_centred")


@dataclass(frozen=True)
class Evaluation:
    """Scores of an encoder on a split, and its held-out predictions.

    Attributes:
        record: JSON-able; each of `METRICS` as mean and std (ddof 0) over folds, `folds`, `genes`, `samples`, `notes`.
        predictions: sample -> (N, G) float32 log1p counts, NaN where no fold holds the spot out or scores the gene.
    """

    record: dict[str, Any]
    predictions: Mapping[str, NDArray[np.float32]]


def evaluate(
    features: Features,
    task: Task,
    settings: FitSettings,
    split: Split | None = None,
    *,
    device: str = "cpu",
    progress: bool = False,
) -> Evaluation:
    """Score embeddings on a split of a task.

    Args:
        features: sample -> (N, D), rows in the order of the sample's patches.
        task: a loaded task.
        settings: the head.
        split: one of the task's, its first by default.
        device: where Gram matrices and heads are computed.
        progress: show a bar over the folds.

    Raises:
        EvalError: embeddings that do not fit the task, or a fold without a single gene that can be correlated.
    """
    check_features(features, task)
    split = split or task.splits[0]
    spots = Spots(features, task.expression, split.labels)
    shift = spots.shift()
    parts = [moments(spots.batches([p]), shift, len(task.genes), device) for p in range(len(split.parts))]
    whole = total(parts)
    predictions = {name: np.full(y.shape, np.nan, dtype=np.float32) for name, y in task.expression.items()}
    records, scores = [], []
    for fold in tqdm(split.folds, desc=f"{task.name} {split.name}", unit="fold", delay=1, disable=not progress):
        train = _training_set(fold, parts, whole, spots)
        if train.moments.n < 2:
            raise EvalError(f"task {task.name}, fold {fold.name}: {train.moments.n} training spot(s); two are needed.")
        record, score = _score_fold(task, fold, fit_head(train, settings), spots, predictions, device)
        record |= {"n_train": train.moments.n, "n_features": len(shift)}
        if split.name != "random":
            record["held_out"] = split.samples(fold.test)
            record["patient_in_training"] = patient_in_training(task, split, fold)
        records.append(record)
        scores.append(score)
    result: dict[str, Any] = {m: mean_std([record[m] for record in records]) for m in METRICS}
    result["folds"] = records
    result["genes"] = _gene_summary(task, np.stack(scores))
    result["samples"] = sample_scores(task, predictions)
    result["notes"] = notes(task, split, records, settings)
    return Evaluation(result, predictions)


def patient_in_training(task: Task, split: Split, fold: PartFold) -> bool | None:
    """Whether a held-out patient also occurs in the fold's training samples; None where a patient is unknown."""
    train, test = ([task.origin(name).patient for name in split.samples(side)] for side in (fold.train, fold.test))
    if None in train + test:
        return None
    return not set(train).isdisjoint(test)


def _training_set(fold: PartFold, parts: Sequence[Moments], whole: Moments, spots: Spots) -> TrainingSet:
    groups = [parts[p] for p in fold.train if parts[p].n]
    held_out = [parts[p] for p in fold.test if parts[p].n]
    if not groups or not held_out:
        raise EvalError(f"fold {fold.name}: no spots to {'train on' if not groups else 'test on'}. Correct the splits.")
    complement = set(fold.train) | set(fold.test) == set(range(len(parts)))
    # Subtracting is one step instead of many, but loses digits where little is left.
    small = 2 * sum(m.n for m in held_out) <= whole.n
    m = whole - total(held_out) if complement and small else total(groups)
    if fold.columns is not None:
        m, groups = m.targets(fold.columns), [g.targets(fold.columns) for g in groups]

    def gather() -> tuple[NDArray[Any], NDArray[Any]]:
        X, Y = spots.gather(fold.train)
        return X, Y if fold.columns is None else Y[:, list(fold.columns)]

    return TrainingSet(m, tuple(groups), gather)


def _score_fold(
    task: Task,
    fold: PartFold,
    fitted: Fitted,
    spots: Spots,
    predictions: Mapping[str, NDArray[np.float32]],
    device: str,
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Record of the fold and its correlations over the task's genes, (G,); writes into `predictions`."""
    columns = np.arange(len(task.genes)) if fold.columns is None else np.asarray(fold.columns)
    rows = spots.rows(fold.test)
    X, Y = spots.gather(fold.test)
    Y = Y if fold.columns is None else Y[:, columns]
    features = torch.as_tensor(np.asarray(X), device=device).double()
    predicted = fitted.predictor.predict(features).cpu().numpy()  # (N, G)
    mean = fitted.target_mean.cpu().numpy()
    centred = predicted if fitted.has_mean else predicted + mean
    start = 0
    for name, index in rows.items():
        predictions[name][np.ix_(index, columns)] = centred[start : start + len(index)]
        start += len(index)
    scores = correlations(Y, predicted)
    genes = [task.genes[i] for i in columns]
    if np.isnan(scores.pcc).all():
        raise EvalError(
            f"task {task.name}, fold {fold.name}: no gene has a correlation (first of {len(genes)}: "
            f"{next(iter(scores.excluded.values()))}). An encoder that gives every patch the same "
            "embedding does this; so does a held-out sample of one spot."
        )
    record = {
        "fold": fold.name,
        "n_test": len(Y),
        **fitted.record,
        "pcc": scores.mean(),
        "pcc10": scores.top(10),
        "mae": mae(Y, predicted),
        "mse": mse(Y, predicted),
        "mae_centred": mae(Y, centred),
        "mse_centred": mse(Y, centred),
        "n_excluded_genes": len(scores.excluded),
        "excluded_genes": {genes[i]: reason for i, reason in scores.excluded.items()},
        "gene_pcc": _named(genes, scores),
    }
    every = np.full(len(task.genes), np.nan)
    every[columns] = scores.pcc
    return record, every


def _named(genes: Sequence[str], scores: Correlations) -> dict[str, float]:
    return {g: float(r) for g, r in zip(genes, scores.pcc, strict=True) if not np.isnan(r)}


def _gene_summary(task: Task, pcc: NDArray[np.float64]) -> list[dict[str, Any]]:
    """`pcc` is (folds, G) with NaN where a fold excludes the gene; a gene that all exclude has null."""
    n = sum(len(y) for y in task.expression.values())
    mean = sum(y.sum(axis=0) for y in task.expression.values()) / n  # (G,)
    variance = sum(((y - mean) ** 2).sum(axis=0) for y in task.expression.values()) / n
    summary: list[dict[str, Any]] = []
    for i, gene in enumerate(task.genes):
        kept = pcc[~np.isnan(pcc[:, i]), i]
        scores = mean_std(kept.tolist()) if kept.size else None
        facts = {"mean": float(mean[i]), "variance": float(variance[i])}
        summary.append({"gene": gene, "pcc": scores, "n_folds": int(kept.size), **facts})
    return summary
