"""Choosing the ridge penalty by leaving one group out inside a training set, from moments alone.

For every group of the training set (see `eval.inner_groups`), the head is fitted on the others and scored on the
group by the mean Pearson correlation over genes. All of it is Gram algebra: a correlation needs the covariance of
prediction and target and the two variances, which are products of the weights with the group's moments.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eval.errors import EvalError
from eval.gram import Moments
from eval.ridge import NULL_VARIANCE, Spectrum, decompose

# Penalties a spot: alpha = share x training spots, so that a grid means the same for any number of spots.
SHARES: tuple[float, ...] = tuple(10.0 ** (e / 3) for e in range(-18, 7))


@dataclass(frozen=True)
class Groups:
    """Moments of the groups that a training set consists of; `level` says what a group is, as `patient`."""

    level: str
    parts: tuple[Moments, ...]


def usable(sizes: Sequence[int]) -> list[int]:
    """Indices of the groups that have two spots and leave two: fewer have no correlation, or no head."""
    return [i for i, n in enumerate(sizes) if n >= 2 and sum(sizes) - n >= 2]


def tune_alpha(parts: Sequence[Moments], whole: Moments, pca: int | None) -> tuple[float, dict[float, float | None]]:
    """Return the best penalty for `whole`, and the mean correlation of every share of `SHARES`, None where undefined.

    Args:
        parts: moments of the groups, two or more, each of two or more spots.
        whole: their sum.
        pca: components, as for `decompose`.

    Raises:
        EvalError: fewer than two groups can be scored.
    """
    groups = [parts[i] for i in usable([part.n for part in parts])]
    if len(groups) < 2:
        raise EvalError(
            f"head ridge-tuned: {len(groups)} group(s) of two spots or more in a training set; leaving one group out "
            "needs two. Use --head ridge, or a task with more training spots."
        )
    scores = torch.stack([_scores(decompose(whole - part, pca), part, whole.n - part.n) for part in groups])
    means = scores.nanmean(0)  # (shares,)
    if means.isnan().all():
        raise EvalError("head ridge-tuned: no gene has a correlation in any left-out group. Use --head ridge.")
    best = int(means.nan_to_num(-2.0).argmax())
    found = [None if np.isnan(r) else float(r) for r in means.tolist()]
    return SHARES[best] * whole.n, dict(zip(SHARES, found, strict=True))


def _scores(spectrum: Spectrum, group: Moments, n_train: int) -> Tensor:
    """Mean correlation over genes on `group`, for every share: (shares,)."""
    return torch.stack(
        [correlation(spectrum, spectrum.coefficients(share * n_train), group).nanmean() for share in SHARES]
    )


def correlation(spectrum: Spectrum, coefficients: Tensor, held_out: Moments) -> Tensor:
    """Pearson correlation per gene, (G,), of a head with coefficients (K, G) on held-out spots; NaN where undefined."""
    n, basis = held_out.n, spectrum.basis
    mean_x, mean_y = held_out.x / n, held_out.y / n
    covariance = held_out.xx / n - torch.outer(mean_x, mean_x)  # (D, D)
    cross = basis.T @ (held_out.xy / n - torch.outer(mean_x, mean_y))  # (K, G)
    projected = basis.T @ covariance @ basis  # (K, K)
    variance = (coefficients * (projected @ coefficients)).sum(0)  # (G,)
    variance_y = held_out.yy / n - mean_y * mean_y
    defined = (variance > 0) & (variance_y > NULL_VARIANCE * held_out.yy / n)
    r = (coefficients * cross).sum(0) / (variance * variance_y).sqrt()
    return torch.where(defined, r, torch.nan)
