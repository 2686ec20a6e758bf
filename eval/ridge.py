"""The linear head of the benchmark: StandardScaler, principal components, ridge; exact, in float64.

The public hest-bench solves the ridge with LSQR at its default tolerance and the PCA with a randomised solver, so that
its predictions carry the solvers' error. Here both have closed forms: the components come from an eigendecomposition
of the smaller Gram matrix, and the ridge from a Cholesky factorisation. On embeddings with strongly correlated features
LSQR's early stop regularises, and the published numbers are then higher than the exact ones: `solver="lsqr"`
reproduces it. No intercept is fitted, as published: features are centred by the scaler, targets are not, and a
prediction therefore lacks the training mean (`Probe.target_mean`).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from eval.errors import EvalError

Array = NDArray[np.float64]
Solver = Literal["exact", "lsqr"]

# Components whose variance is below this share of the first one's are rounding noise of the eigendecomposition.
NULL_VARIANCE = 1e-12


@dataclass(frozen=True)
class Probe:
    """A fitted head; `components` is the number of features after PCA, None where no PCA was applied."""

    scaler: StandardScaler
    axes: Array | None  # (D, K)
    weights: Array  # (K, G), or (D, G) without PCA
    target_mean: Array  # (G,)
    alpha: float

    @property
    def components(self) -> int | None:
        """Number of principal components, None without PCA."""
        return None if self.axes is None else self.axes.shape[1]

    def predict(self, features: NDArray[np.floating]) -> Array:
        """Predict log1p counts without intercept: (N, D) -> (N, G)."""
        X = self.scaler.transform(np.asarray(features, dtype=np.float64))  # (N, D)
        if self.axes is not None:
            X = X @ self.axes  # (N, K)
        return np.asarray(X @ self.weights)


def published_alpha(n_features: int, n_targets: int) -> float:
    """The benchmark's penalty, 100 / (features x genes), with the features counted after PCA."""
    return 100.0 / (n_features * n_targets)


def fit_probe(
    features: NDArray[np.floating],
    targets: Array,
    *,
    pca: int | None = 256,
    alpha: float | None = None,
    solver: Solver = "exact",
) -> Probe:
    """Fit scaler, PCA and ridge on the training spots of a fold.

    Args:
        features: embeddings, (N, D).
        targets: log1p counts, (N, G).
        pca: most principal components to keep, min(pca, D, N); None for no PCA.
        alpha: ridge penalty; None for the published one.
        solver: `exact`, or `lsqr`, scikit-learn's at its default tolerance, as the benchmark calls it.

    Raises:
        EvalError: fewer than two spots, features that are not finite, or an alpha that is not above 0.
    """
    X = np.asarray(features, dtype=np.float64)
    if X.shape[0] < 2:
        raise EvalError(f"{X.shape[0]} training spot(s): a fold needs at least two. Correct the splits.")
    if not np.isfinite(X).all():
        raise EvalError(f"{int((~np.isfinite(X)).sum())} training features are NaN or infinite; they must be finite.")
    scaler = StandardScaler().fit(X)
    X = scaler.transform(X)  # (N, D)
    axes = None
    if pca is not None:
        axes = principal_axes(X, min(pca, *X.shape))
        X = X @ axes  # (N, K)
    alpha = published_alpha(X.shape[1], targets.shape[1]) if alpha is None else alpha
    weights = solve_ridge(X, targets, alpha) if solver == "exact" else solve_ridge_by_lsqr(X, targets, alpha)
    return Probe(scaler, axes, weights, targets.mean(axis=0), alpha)


def principal_axes(X: Array, components: int) -> Array:
    """Return the leading principal axes of centred features: (N, D) -> (D, K), columns of unit length.

    Directions in which the training features do not vary (at most N - 1 vary) are returned as zeros: they count as
    components, but what held-out features do there cannot be learnt and must not leak into predictions as noise.

    Source: the eigenvectors of X^T X, or X^T U / s with U those of X X^T where there are fewer spots than features.
    """
    N, D = X.shape
    gram = X @ X.T if N < D else X.T @ X
    last = gram.shape[0] - 1
    variances, vectors = scipy.linalg.eigh(gram, subset_by_index=(last - components + 1, last))
    variances, vectors = variances[::-1], vectors[:, ::-1]
    kept = variances > max(variances[0], 0.0) * NULL_VARIANCE
    axes = vectors if D <= N else X.T @ (vectors / np.sqrt(np.where(kept, variances, 1.0)))
    return np.asarray(axes * kept)


def solve_ridge(X: Array, Y: Array, alpha: float) -> Array:
    """Return W = argmin |Y - X W|^2 + alpha |W|^2 without intercept: (N, K), (N, G) -> (K, G).

    Source: (X^T X + alpha I) W = X^T Y, or W = X^T (X X^T + alpha I)^-1 Y where N < K.

    Raises:
        EvalError: alpha is not above 0.
    """
    if not alpha > 0:
        raise EvalError(f"alpha {alpha}: the ridge penalty must be above 0.")
    if X.shape[0] < X.shape[1]:
        gram = X @ X.T + alpha * np.eye(X.shape[0])  # (N, N)
        return np.asarray(X.T @ scipy.linalg.solve(gram, Y, assume_a="pos"))
    gram = X.T @ X + alpha * np.eye(X.shape[1])  # (K, K)
    return np.asarray(scipy.linalg.solve(gram, X.T @ Y, assume_a="pos"))


def solve_ridge_by_lsqr(X: Array, Y: Array, alpha: float) -> Array:
    """Return scikit-learn's iterative solution at its default tolerance: (N, K), (N, G) -> (K, G)."""
    return np.asarray(Ridge(alpha=alpha, solver="lsqr", fit_intercept=False).fit(X, Y).coef_.T)
