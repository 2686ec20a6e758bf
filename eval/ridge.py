"""The linear head of the benchmark: StandardScaler, principal components, ridge; exact, in float64, from Gram matrices.

The public hest-bench standardises, projects on 256 principal components (randomised solver) and solves the ridge with
LSQR at its default tolerance, so that its predictions carry the solvers' error. Here all three have closed forms in the
moments of the training spots (`eval.gram`): the scaler is the diagonal of the covariance, the components are the
eigenvectors V of the standardised Gram matrix, and in their basis the ridge is diagonal,

    W = S^-1 V (L + alpha I)^-1 V^T S^-1 (X - m)^T Y,    S = diag(standard deviations), L = eigenvalues,

so that one eigendecomposition serves all penalties. On embeddings with strongly correlated features LSQR's early stop
regularises, and the published numbers are then higher than the exact ones: `eval.heads.lsqr_coefficients` reproduces
them. As published, no intercept is fitted: features are centred, targets are not, and a prediction lacks the training
mean. Centred features make the weights the same with an intercept, which only adds that mean.
"""

from dataclasses import dataclass

import scipy.linalg
import torch
from torch import Tensor

from eval.errors import EvalError
from eval.gram import Moments

# Variance below this share of the first component's (or of a feature's own sums) is rounding noise.
NULL_VARIANCE = 1e-12


@dataclass(frozen=True)
class Linear:
    """A fitted linear head: features (N, D) -> (N, G) as `features @ weights + offset`."""

    weights: Tensor  # (D, G)
    offset: Tensor  # (G,)

    def predict(self, features: Tensor) -> Tensor:
        """(N, D) float64 -> (N, G) float64."""
        return torch.addmm(self.offset, features, self.weights)


@dataclass(frozen=True)
class Spectrum:
    """Standardised training features in the basis of their K leading principal components."""

    centre: Tensor  # (D,) mean of the features
    basis: Tensor  # (D, K): (features - centre) @ basis are the components
    values: Tensor  # (K,) eigenvalues, descending; exactly 0 in directions that do not vary
    rotated: Tensor  # (K, G): components^T targets
    target_mean: Tensor  # (G,)

    @property
    def components(self) -> int:
        """K, those without variance included."""
        return len(self.values)

    def coefficients(self, alpha: float) -> Tensor:
        """Ridge weights on the components, (K, G); directions without variance get 0.

        Raises:
            EvalError: alpha is not above 0.
        """
        if not alpha > 0:
            raise EvalError(f"alpha {alpha}: the ridge penalty must be above 0.")
        return self.rotated / (self.values + alpha)[:, None]

    def linear(self, coefficients: Tensor, *, intercept: bool) -> Linear:
        """The head with these coefficients (K, G), in the units of the raw features."""
        weights = self.basis @ coefficients  # (D, G)
        offset = -(self.centre @ weights)
        return Linear(weights, offset + self.target_mean if intercept else offset)

    def ridge(self, alpha: float, *, intercept: bool = False) -> Linear:
        """The ridge of penalty `alpha`; EvalError where it is not above 0."""
        return self.linear(self.coefficients(alpha), intercept=intercept)


def published_alpha(n_features: int, n_targets: int) -> float:
    """The benchmark's penalty, 100 / (features x genes), with the features counted after PCA."""
    return 100.0 / (n_features * n_targets)


def standardise(m: Moments) -> tuple[Tensor, Tensor]:
    """Mean about the shift (D,) and one over the standard deviation (D,), 0 for a feature that does not vary.

    Source: scikit-learn's StandardScaler (variance with ddof 0). It divides constant features by 1; 0 here keeps what
    held-out spots have in such a feature out of the predictions, as nothing could be learnt about it.
    """
    mean = m.x / m.n
    variance = m.xx.diagonal() / m.n - mean * mean
    varies = variance > NULL_VARIANCE * m.peak / m.n
    return mean, torch.where(varies, variance.clamp_min(torch.finfo(torch.float64).tiny).rsqrt(), 0.0)


def decompose(m: Moments, pca: int | None = 256) -> Spectrum:
    """Standardise, rotate to principal components, keep the leading min(pca, D, N); all of them where `pca` is None.

    Directions in which the training features do not vary (at most N - 1 vary) have coefficients of zero: they count as
    components, but what held-out features do there cannot be learnt and must not leak into predictions as noise.

    Raises:
        EvalError: fewer than two spots.
    """
    if m.n < 2:
        raise EvalError(f"{m.n} training spot(s): a fold needs at least two. Correct the splits.")
    mean, inverse = standardise(m)
    gram = (m.xx - m.n * torch.outer(mean, mean)) * torch.outer(inverse, inverse)  # (D, D)
    values, vectors = _eigh(gram)
    K = min(pca if pca is not None else len(values), len(values), m.n)
    values, vectors = values[-K:].flip(0), vectors[:, -K:].flip(1)
    kept = values > values[0].clamp_min(0.0) * NULL_VARIANCE
    basis = vectors * inverse[:, None] * kept  # (D, K)
    rotated = basis.T @ (m.xy - torch.outer(mean, m.y))  # (K, G)
    return Spectrum(mean + m.shift, basis, torch.where(kept, values, 0.0), rotated, m.y / m.n)


def _eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (D,), ascending, and eigenvectors (D, D) of a symmetric matrix, which may be overwritten."""
    if gram.device.type != "cpu":
        values, vectors = torch.linalg.eigh(gram)
        return values, vectors
    # Divide and conquer from SciPy's LAPACK takes four fifths of the time of PyTorch's, and this is most of a fold's.
    found = scipy.linalg.eigh(gram.numpy(), driver="evd", overwrite_a=True, check_finite=False)
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])
