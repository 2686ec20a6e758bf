"""The protocol `hest-benchmark`: for each given fold, fit the head on the training spots, score the held-out ones.

Source: HEST-1k (arXiv 2406.16192) and the code of its benchmark: log1p counts, StandardScaler, PCA 256, ridge without
intercept with alpha = 100 / (features x genes), Pearson correlation per gene; PCC-10, MAE and MSE as in the MVHybrid
paper. Two deviations: PCA and ridge are solved exactly where the published solvers are approximate (see `eval.ridge`;
`solver="lsqr"` undoes the second, the one that matters). And one addition: as a ridge without intercept on uncentred
targets predicts only the deviation from the mean, MAE and MSE mostly measure mean expression; `mae_centred` and
`mse_centred` score the prediction with the training mean added back.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.errors import EvalError, first_few
from eval.hest_data import Task
from eval.metrics import Correlations, correlations, mae, mean_std, mse
from eval.ridge import Solver, fit_probe
from eval.splits import Fold, Sample, patient_in_training

METRICS = ("pcc", "pcc10", "mae", "mse", "mae_centred", "mse_centred")
Features = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class FitSettings:
    """What decides a score given the embeddings; `pca` None means no PCA, `alpha` None the published penalty."""

    protocol: str = "hest-benchmark"
    pca: int | None = 256
    alpha: float | None = None
    solver: Solver = "exact"

    def __post_init__(self) -> None:
        if self.pca is not None and self.pca < 1:
            raise EvalError(f"pca {self.pca}: the number of components must be 1 or more (or use no PCA).")
        if self.alpha is not None and not self.alpha > 0:
            raise EvalError(f"alpha {self.alpha}: the ridge penalty must be above 0.")

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form, with the intercept, which this protocol never fits."""
        return {**asdict(self), "intercept": False, "target": "log1p(raw counts)"}


def evaluate(features: Features, task: Task, settings: FitSettings) -> dict[str, Any]:
    """Score embeddings on a task.

    Args:
        features: sample -> (N, D), rows in the order of the sample's patches.
        task: a loaded task.
        settings: components and penalty of the head.

    Returns:
        JSON-able: each of `METRICS` as mean and std (ddof 0) over folds, `folds`, `genes` (mean and std of the
        correlation over the folds that have one) and `notes` (sentences about what departed from the protocol).

    Raises:
        EvalError: embeddings that do not fit the task, or a fold without a single gene that can be correlated.
    """
    for name, values in task.expression.items():
        if name not in features or len(features[name]) != len(values):
            found = len(features[name]) if name in features else "no"
            raise EvalError(f"task {task.name}: sample {name} has {len(values)} patches but {found} embeddings.")
    scored = [_evaluate_fold(features, task, fold, settings) for fold in task.folds]
    records = [record for record, _ in scored]
    result: dict[str, Any] = {m: mean_std([record[m] for record in records]) for m in METRICS}
    result["folds"] = records
    result["genes"] = _gene_summary(task.genes, np.stack([c.pcc for _, c in scored]))
    result["notes"] = _notes(records, settings)
    return result


def _evaluate_fold(
    features: Features, task: Task, fold: Fold, settings: FitSettings
) -> tuple[dict[str, Any], Correlations]:
    X_train, Y_train = _stack(features, task, fold.train)  # (N, D), (N, G)
    X_test, Y_test = _stack(features, task, fold.test)
    probe = fit_probe(X_train, Y_train, pca=settings.pca, alpha=settings.alpha, solver=settings.solver)
    predicted = probe.predict(X_test)  # (M, G)
    centred = predicted + probe.target_mean
    scores = correlations(Y_test, predicted)
    if np.isnan(scores.pcc).all():
        raise EvalError(
            f"task {task.name}, fold {fold.index}: no gene has a correlation (first of {len(task.genes)}: "
            f"{next(iter(scores.excluded.values()))}). An encoder that gives every patch the same "
            "embedding does this; so does a held-out sample of one spot."
        )
    record = {
        "fold": fold.index,
        "held_out": [s.name for s in fold.test],
        "patient_in_training": patient_in_training(fold, task.patients),
        "n_train": len(X_train),
        "n_test": len(X_test),
        "n_features": X_train.shape[1],
        "pca_components": probe.components,
        "alpha": probe.alpha,
        "pcc": scores.mean(),
        "pcc10": scores.top(10),
        "mae": mae(Y_test, predicted),
        "mse": mse(Y_test, predicted),
        "mae_centred": mae(Y_test, centred),
        "mse_centred": mse(Y_test, centred),
        "n_excluded_genes": len(scores.excluded),
        "excluded_genes": {task.genes[i]: reason for i, reason in scores.excluded.items()},
        "gene_pcc": {g: float(r) for g, r in zip(task.genes, scores.pcc, strict=True) if not np.isnan(r)},
    }
    return record, scores


def _stack(features: Features, task: Task, samples: tuple[Sample, ...]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    return (
        np.concatenate([features[s.name] for s in samples]),
        np.concatenate([task.expression[s.name] for s in samples]),
    )


def _gene_summary(genes: tuple[str, ...], pcc: NDArray[np.float64]) -> list[dict[str, Any]]:
    """`pcc` is (folds, G) with NaN where a fold excludes the gene; a gene that all exclude has null."""
    summary: list[dict[str, Any]] = []
    for gene, values in zip(genes, pcc.T, strict=True):
        kept = values[~np.isnan(values)]
        scores = mean_std(kept.tolist()) if kept.size else None
        summary.append({"gene": gene, "pcc": scores, "n_folds": int(kept.size)})
    return summary


def _notes(records: list[dict[str, Any]], settings: FitSettings) -> list[str]:
    notes = []
    for r in records:
        if settings.pca is not None and r["pca_components"] < min(settings.pca, r["n_features"]):
            notes.append(
                f"fold {r['fold']}: {r['pca_components']} PCA components instead of "
                f"{min(settings.pca, r['n_features'])}, as it has only {r['n_train']} training spots"
            )
        if r["excluded_genes"]:
            named = first_few([f"{g} ({reason})" for g, reason in r["excluded_genes"].items()])
            notes.append(f"fold {r['fold']}: {r['n_excluded_genes']} gene(s) excluded from PCC and PCC-10: {named}")
    known = [r for r in records if r["patient_in_training"] is not None]
    inside = [r for r in known if r["patient_in_training"]]
    if inside:
        out = [r["fold"] for r in known if not r["patient_in_training"]]
        which = f" (fold {first_few(out)})" if out else ""
        notes.append(
            f"{len(known) - len(inside)} of {len(records)} folds hold out a patient{which}; {len(inside)} train on "
            "other sections of the held-out patient and may look better than a new patient would"
        )
    return notes
