"""Partial least squares from moments: components that covary most with the targets, instead of PCA's.

Source: the improved kernel algorithm no. 2 of Dayal and MacGregor (1997, Journal of Chemometrics 11:73), which needs
X^T X and X^T Y only; features and targets are standardised with ddof 1, as in scikit-learn's PLSRegression, whose
predictions it equals.
"""

import torch
from torch import Tensor

from eval.errors import EvalError
from eval.gram import Moments
from eval.ridge import NULL_VARIANCE, Linear, standardise


def fit_pls(m: Moments, components: int) -> tuple[Linear, int]:
    """Fit with intercept; return the head and the number of components, fewer where the features have no more.

    Raises:
        EvalError: fewer than two spots.
    """
    if m.n < 2:
        raise EvalError(f"{m.n} training spot(s): a fold needs at least two. Correct the splits.")
    ddof = ((m.n - 1) / m.n) ** 0.5
    mean, inverse = standardise(m)
    inverse = inverse * ddof  # (D,)
    mean_y = m.y / m.n
    scale_y = ((m.yy - m.n * mean_y**2).clamp_min(0) / (m.n - 1)).sqrt()
    scale_y = torch.where(scale_y > 0, scale_y, 1.0)  # (G,)
    XX = (m.xx - m.n * torch.outer(mean, mean)) * torch.outer(inverse, inverse)  # (D, D)
    XY = (m.xy - torch.outer(mean, m.y)) * inverse[:, None] / scale_y  # (D, G)
    floor = NULL_VARIANCE * torch.linalg.matrix_norm(XY)
    R: list[Tensor] = []  # weights, in the features
    P: list[Tensor] = []  # loadings of the features
    Q: list[Tensor] = []  # loadings of the targets
    for _ in range(min(components, len(XX), m.n - 1)):
        w, strength = _dominant(XY)
        if strength <= floor:
            break
        r = w
        for p, earlier in zip(P, R, strict=True):
            r = r - (p @ w) * earlier
        t = XX @ r  # (D,)
        norm = r @ t
        if not norm > NULL_VARIANCE * XX.diagonal().sum():
            break
        p, q = t / norm, (XY.T @ r) / norm
        XY = XY - torch.outer(p, q) * norm
        R.append(r)
        P.append(p)
        Q.append(q)
    standard = torch.stack(R, 1) @ torch.stack(Q) if R else torch.zeros_like(XY)  # (D, G)
    weights = standard * inverse[:, None] * scale_y
    return Linear(weights, mean_y - (mean + m.shift) @ weights), len(R)


def _dominant(XY: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vector of the largest singular value, (D,), and that value; by the smaller of its Gram matrices."""
    if len(XY) <= XY.shape[1]:
        values, vectors = torch.linalg.eigh(XY @ XY.T)
        return vectors[:, -1], values[-1].clamp_min(0).sqrt()
    w = XY @ torch.linalg.eigh(XY.T @ XY)[1][:, -1]  # (D,)
    return w / w.norm().clamp_min(torch.finfo(w.dtype).tiny), w.norm()
