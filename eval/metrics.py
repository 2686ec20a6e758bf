"""Scores of a fold: Pearson correlation per gene, PCC, PCC-10, MAE and MSE (definitions of the MVHybrid paper).

PCC is the mean over genes of the Pearson correlation between predicted and measured log1p counts over the held-out
spots; PCC-10 the mean of the ten highest of them within the fold. A gene whose measured or predicted values do not vary
has no correlation: it is left out of PCC and PCC-10, counted and named. MAE and MSE are over all spots and genes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# In log1p units: a prediction that varies by less than this is rounding noise around a constant.
CONSTANT_BELOW = 1e-9


@dataclass(frozen=True)
class Correlations:
    """Pearson correlation per gene, (G,), NaN exactly at the genes that `excluded` names with the reason."""

    pcc: Array
    excluded: dict[int, str]

    def mean(self) -> float:
        """Mean over the genes that have a correlation; NaN where none has."""
        kept = self.pcc[~np.isnan(self.pcc)]
        return float(kept.mean()) if kept.size else float("nan")

    def top(self, count: int = 10) -> float:
        """Mean of the `count` highest correlations (of all, where there are fewer); NaN where there is none."""
        kept = np.sort(self.pcc[~np.isnan(self.pcc)])[-count:]
        return float(kept.mean()) if kept.size else float("nan")


def correlations(measured: Array, predicted: Array) -> Correlations:
    """Pearson correlation of each column.

    Args:
        measured: (N, G).
        predicted: (N, G).

    Raises:
        ValueError: the shapes differ.
    """
    if measured.shape != predicted.shape:
        raise ValueError(f"measured {measured.shape} and predicted {predicted.shape} must have the same shape")
    a = measured - measured.mean(axis=0)  # (N, G)
    b = predicted - predicted.mean(axis=0)  # (N, G)
    spread_a, spread_b = np.sqrt((a**2).mean(axis=0)), np.sqrt((b**2).mean(axis=0))  # (G,)
    excluded = {int(i): "constant prediction" for i in np.flatnonzero(spread_b < CONSTANT_BELOW)}
    excluded |= {int(i): "constant in the held-out spots" for i in np.flatnonzero(spread_a < CONSTANT_BELOW)}
    valid = np.ones(a.shape[1], dtype=bool)
    valid[list(excluded)] = False
    pcc = np.full(a.shape[1], np.nan)
    products = (a[:, valid] * b[:, valid]).mean(axis=0)
    pcc[valid] = np.clip(products / (spread_a[valid] * spread_b[valid]), -1.0, 1.0)
    return Correlations(pcc, dict(sorted(excluded.items())))


def mae(measured: Array, predicted: Array) -> float:
    """Mean absolute error over all spots and genes, in log1p units; both (N, G)."""
    return float(np.abs(measured - predicted).mean())


def mse(measured: Array, predicted: Array) -> float:
    """Mean squared error over all spots and genes, in squared log1p units; both (N, G)."""
    return float(((measured - predicted) ** 2).mean())


def mean_std(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation (ddof 0, as published) over folds."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values))}
