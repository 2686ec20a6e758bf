"""Both protocols' arithmetic: for each fold of a split, fit the head on the training spots and score the held-out ones.

Source: HEST-1k (arXiv 2406.16192) and the code of its benchmark: log1p counts, StandardScaler, PCA 256, ridge without
intercept with alpha = 100 / (features x genes), Pearson correlation per gene; PCC-10, MAE and MSE as in the MVHybrid
paper (arXiv 2508.00383). As a ridge without intercept on uncentred targets predicts only the deviation from the mean,
MAE and MSE mostly measure mean expression there; `mae_centred` and `mse_centred` score the prediction with the training
mean in it. The spots are read once for the Gram matrices of all parts of all splits and once a split for the
predictions; every fold's training set is a sum or difference of parts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from eval.errors import EvalError
from eval.fold_scores import SplitData, predict_fold, score_fold
from eval.folds import PartFold, Split
from eval.gram import Batch, Moments, total
from eval.heads import TrainingSet, fit_head
from eval.hest_data import Task
from eval.inner_groups import inner_groups
from eval.leakage import find_leaks
from eval.metrics import Sums, mean_std
from eval.notes import notes
from eval.per_sample import sample_scores
from eval.settings import FitSettings
from eval.spots import Features, check_features, part_moments
from eval.tuned import Groups

METRICS = ("pcc", "pcc10", "mae", "mse", "mae_centred", "mse_centred")


@dataclass(frozen=True)
class Evaluation:
    """Scores of an encoder on a split, and its held-out predictions of some genes.

    Attributes:
        record: JSON-able; each of `METRICS` as mean and std (ddof 0) over folds, `folds`, `genes`, `samples`,
            `leaks`, `notes`.
        predictions: sample -> (N, K) log1p counts with the training mean in them, for the genes that were asked for;
            NaN where no fold holds the spot out or scores the gene.
    """

    record: dict[str, Any]
    predictions: Mapping[str, NDArray[np.float32]]


def evaluate(
    features: Features,
    task: Task,
    settings: FitSettings,
    *,
    keep: Sequence[int] = (),
    device: str = "cpu",
    progress: bool = False,
) -> list[Evaluation]:
    """Score embeddings on every split of a task.

    Args:
        features: sample -> (N, D), rows in the order of the sample's patches.
        task: a loaded task.
        settings: the head.
        keep: genes whose predictions are returned, as indices.
        device: where Gram matrices and heads are computed.
        progress: show a bar over the folds.

    Raises:
        EvalError: embeddings that do not fit the task, or a fold without a single gene that can be correlated.
    """
    check_features(features, task)
    parts = part_moments(features, task, task.splits, device)
    folds = sum(len(split.folds) for split in task.splits)
    with tqdm(total=folds, desc=f"{task.name}: folds", unit="fold", delay=1, disable=not progress) as bar:
        return [
            _evaluate_split(SplitData(features, task, split, device), settings, p, keep, bar)
            for split, p in zip(task.splits, parts, strict=True)
        ]


def _evaluate_split(
    s: SplitData, settings: FitSettings, parts: Sequence[Moments], keep: Sequence[int], bar: "tqdm"
) -> Evaluation:
    task = s.task
    whole = total(parts)
    centre = (whole.y / whole.n).cpu().numpy()  # (G,) mean of the targets, from which sums are counted
    kept = {name: np.full((len(y), len(keep)), np.nan, dtype=np.float32) for name, y in task.expression.items()}
    held_out: dict[str, Sums] = {}
    records, scores = [], []
    for fold in s.split.folds:
        train = _training_set(s, fold, parts, whole)
        fitted = fit_head(train, settings)
        columns = np.arange(len(task.genes)) if fold.columns is None else np.asarray(fold.columns)
        by_sample = predict_fold(s, fold, fitted, columns, centre, keep, kept)
        for name, sample_sums in by_sample.items():
            spread = sample_sums.spread(columns, len(task.genes))
            held_out[name] = held_out[name] + spread if name in held_out else spread
        record, score = score_fold(task, fold, columns, list(by_sample.values()))
        record |= {"n_train": train.moments.n, "n_features": len(whole.x), **fitted.record}
        if s.split.name != "random":
            record["held_out"] = s.split.samples(fold.test)
            record["patient_in_training"] = patient_in_training(task, s.split, fold)
        if fold.panel is not None:
            record["panel"] = dict(fold.panel)
        records.append(record)
        scores.append(score)
        bar.update()
    result: dict[str, Any] = {m: mean_std([record[m] for record in records]) for m in METRICS}
    result["folds"] = records
    variance = (whole.yy / whole.n).cpu().numpy() - centre**2
    result["genes"] = _gene_summary(s, np.stack(scores), centre, variance)
    result["samples"] = sample_scores(task, held_out)
    result["leaks"] = [{"kind": leak.kind, "text": leak.text} for leak in find_leaks(task, s.split)]
    result["notes"] = notes(task, s.split, records, settings)
    return Evaluation(result, kept)


def patient_in_training(task: Task, split: Split, fold: PartFold) -> bool | None:
    """Whether a held-out patient also occurs in the fold's training samples; None where a patient is unknown."""
    train, test = ([task.origin(name).patient for name in split.samples(side)] for side in (fold.train, fold.test))
    if None in train + test:
        return None
    return not set(train).isdisjoint(test)


def _training_set(s: SplitData, fold: PartFold, parts: Sequence[Moments], whole: Moments) -> TrainingSet:
    groups = [parts[p] for p in fold.train if parts[p].n]
    held_out = [parts[p] for p in fold.test if parts[p].n]
    if not groups or not held_out:
        side = "test" if groups else "train"
        raise EvalError(f"task {s.task.name}, fold {fold.name}: no spots to {side} on. Correct the splits.")
    complement = set(fold.train) | set(fold.test) == set(range(len(parts)))
    # Subtracting is one step instead of many, but loses digits where little is left.
    small = 2 * sum(m.n for m in held_out) <= whole.n
    m = whole - total(held_out) if complement and small else total(groups)
    if fold.columns is not None:
        m = m.targets(fold.columns)

    def inner() -> Groups:
        found = inner_groups(s, fold, parts)
        if fold.columns is None:
            return found
        return Groups(found.level, tuple(g.targets(fold.columns) for g in found.parts))

    def gather() -> Batch:
        X, Y = s.spots.gather(fold.train)
        return X, Y if fold.columns is None else Y[:, list(fold.columns)]

    return TrainingSet(m, inner, gather)


def _gene_summary(
    s: SplitData, pcc: NDArray[np.float64], mean: NDArray[np.float64], variance: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """`pcc` is (folds, G) with NaN where a fold excludes the gene; a gene that all exclude has null."""
    summary: list[dict[str, Any]] = []
    for i in s.split.scored(len(s.task.genes)):
        kept = pcc[~np.isnan(pcc[:, i]), i]
        scores = mean_std(kept.tolist()) if kept.size else None
        facts = {"mean": float(mean[i]), "variance": float(max(variance[i], 0.0))}
        summary.append({"gene": s.task.genes[i], "pcc": scores, "n_folds": int(kept.size), **facts})
    return summary
