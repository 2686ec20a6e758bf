"""Scores: Pearson correlation per gene, PCC, PCC-10, MAE and MSE (definitions of the MVHybrid paper), from sums.

PCC is the mean over genes of the Pearson correlation between predicted and measured log1p counts over the held-out
spots; PCC-10 the mean of the ten highest of them within the fold. A gene whose measured or predicted values do not vary
has no correlation: it is left out of PCC and PCC-10, counted and named. MAE and MSE are over all spots and genes. All
follow from sums over spots, so that spots are seen once, in batches, and the sums of samples add up to those of folds.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

# A variance below this share of the mean square is rounding noise around a constant.
CONSTANT_BELOW = 1e-13


@dataclass(frozen=True)
class Sums:
    """Sums over spots for each gene, (G,) each; predictions p and measurements y count from one common centre.

    `error` is that of the prediction with the training mean in it, `raw_error` that of the head as it is.
    """

    n: Array
    p: Array
    y: Array
    pp: Array
    yy: Array
    py: Array
    abs_error: Array
    sq_error: Array
    abs_raw_error: Array
    sq_raw_error: Array

    def __add__(self, other: "Sums") -> "Sums":
        """Sums over the spots of both, which must share the centre."""
        return Sums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def spread(self, columns: NDArray[np.intp], size: int) -> "Sums":
        """The same for `size` genes of which these are the `columns`; nothing was summed for the others."""
        return Sums(*(_scattered(getattr(self, f.name), columns, size) for f in fields(self)))


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


def sums(measured: Tensor, predicted: Tensor, raw_offset: Tensor) -> Sums:
    """Sum a batch of spots.

    Args:
        measured: log1p counts less the centre, (B, G), float64.
        predicted: predictions with the training mean in them, less the same centre, (B, G), float64.
        raw_offset: what the head's own predictions are above these, (G,).
    """
    error = predicted - measured  # (B, G)
    raw = error + raw_offset
    found = (
        predicted.sum(0),
        measured.sum(0),
        predicted.square().sum(0),
        measured.square().sum(0),
        (predicted * measured).sum(0),
        error.abs().sum(0),
        error.square().sum(0),
        raw.abs().sum(0),
        raw.square().sum(0),
    )
    stacked = torch.stack([torch.full_like(found[0], len(measured)), *found])
    return Sums(*stacked.cpu().numpy())


def correlations(s: Sums) -> Correlations:
    """Pearson correlation of each gene."""
    n = np.maximum(s.n, 1)
    mean_p, mean_y = s.p / n, s.y / n
    variance_p, variance_y = s.pp / n - mean_p**2, s.yy / n - mean_y**2
    excluded = {int(i): "constant prediction" for i in np.flatnonzero(variance_p <= CONSTANT_BELOW * s.pp / n)}
    constant = np.flatnonzero(variance_y <= CONSTANT_BELOW * s.yy / n)
    excluded |= {int(i): "constant in the held-out spots" for i in constant}
    valid = np.ones(len(n), dtype=bool)
    valid[list(excluded)] = False
    pcc = np.full(len(n), np.nan)
    covariance = (s.py / n - mean_p * mean_y)[valid]
    pcc[valid] = np.clip(covariance / np.sqrt(variance_p[valid] * variance_y[valid]), -1.0, 1.0)
    return Correlations(pcc, dict(sorted(excluded.items())))


def errors(s: Sums) -> dict[str, float]:
    """MAE and MSE over all spots and genes, in log1p units (squared for MSE), and both of the centred prediction."""
    n = s.n.sum()
    names = {"mae": s.abs_raw_error, "mse": s.sq_raw_error, "mae_centred": s.abs_error, "mse_centred": s.sq_error}
    return {name: float(total.sum() / n) for name, total in names.items()}


def mean_std(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation (ddof 0, as published) over folds."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values))}


def _scattered(values: Array, columns: NDArray[np.intp], size: int) -> Array:
    every = np.zeros(size)
    every[columns] = values
    return every
