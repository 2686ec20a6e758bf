"""Sums over spots from which every linear head is fitted: counts, means and Gram matrices of features and targets.

A pass over the spots of a part (a sample, a study, a tenth of everything) gives its `Moments`; those of a training set
are sums or differences of them. Scaler, PCA, ridge and partial least squares need nothing else, so that folds,
penalties and inner cross-validation never read a spot again, and the spots may be more than fit into memory. All sums
are float64 and taken about a common shift (a typical feature vector), as sums about 0 lose the digits in which features
with a mean far from 0 differ.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Sums over `n` spots of x = features - shift and y = targets; all float64 on one device.

    `peak` is the largest sum of squares of each feature that `xx` was computed from: what a subtraction leaves below
    its rounding error means a feature that does not vary.
    """

    n: int
    shift: Tensor  # (D,)
    x: Tensor  # (D,)
    y: Tensor  # (G,)
    xx: Tensor  # (D, D)
    xy: Tensor  # (D, G)
    yy: Tensor  # (G,)
    peak: Tensor  # (D,)

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of the spots of both."""
        return self._combine(other, 1)

    def __sub__(self, other: "Moments") -> "Moments":
        """Moments of the spots that are in `self` and not in `other`, which must all be in `self`."""
        return self._combine(other, -1)

    def targets(self, columns: Sequence[int] | NDArray[np.intp]) -> "Moments":
        """The same spots with a selection of the targets."""
        chosen = torch.as_tensor(np.asarray(columns), device=self.y.device)
        return replace(self, y=self.y[chosen], xy=self.xy[:, chosen], yy=self.yy[chosen])

    def _combine(self, other: "Moments", sign: int) -> "Moments":
        x, y, xx, xy, yy = (getattr(self, k).add(getattr(other, k), alpha=sign) for k in ("x", "y", "xx", "xy", "yy"))
        peak = torch.maximum(self.peak, other.peak)
        return Moments(self.n + sign * other.n, self.shift, x, y, xx, xy, yy, peak)


Batch = tuple[NDArray[np.floating], NDArray[np.floating]]  # features (B, D), targets (B, G)


def moments(batches: Iterable[Batch], shift: NDArray[np.floating], n_targets: int, device: str = "cpu") -> Moments:
    """Accumulate the moments of all batches.

    Args:
        batches: features (B, D) and targets (B, G) of some spots each; only one is held at a time.
        shift: a typical feature vector, (D,); moments that will be added must have the same one.
        n_targets: G, which no batch would tell.
        device: where the sums are kept and the products taken.
    """
    c = torch.as_tensor(np.asarray(shift, dtype=np.float64), device=device)  # (D,)
    D, G, n = len(c), n_targets, 0
    new = torch.zeros(D * (D + G + 1) + 2 * G, dtype=torch.float64, device=device)
    xx, xy, x, y, yy = new.split([D * D, D * G, D, G, G])
    xx, xy = xx.view(D, D), xy.view(D, G)
    for features, targets in batches:
        X = torch.as_tensor(np.asarray(features), device=device).double() - c  # (B, D)
        Y = torch.as_tensor(np.asarray(targets), device=device).double()  # (B, G)
        n += len(X)
        xx.addmm_(X.T, X)
        xy.addmm_(X.T, Y)
        x += X.sum(0)
        y += Y.sum(0)
        yy += (Y * Y).sum(0)
    return Moments(n, c, x, y, xx, xy, yy, xx.diagonal().clone())


def total(parts: Sequence[Moments]) -> Moments:
    """Moments of all parts together (at least one)."""
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return result
