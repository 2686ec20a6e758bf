"""The heads that map embeddings to expression: ridge (published or tuned), partial least squares, nearest neighbours.

All but nearest neighbours and the published LSQR call are fitted from moments alone. Ridge without PCA keeps all
directions; nearest neighbours are Euclidean in the standardised features after PCA.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor
from torch import Tensor

from eval.gram import Batch, Moments
from eval.pls import fit_pls
from eval.ridge import Spectrum, decompose, published_alpha
from eval.settings import FitSettings
from eval.tuned import Groups, tune_alpha


class Predictor(Protocol):
    """Maps features (N, D) to predicted log1p counts (N, G), both float64."""

    def predict(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, G)."""
        ...


@dataclass(frozen=True)
class TrainingSet:
    """The training spots of a fold: their moments, and on demand those of their inner groups, and the spots."""

    moments: Moments
    groups: Callable[[], Groups]
    gather: Callable[[], Batch]


@dataclass(frozen=True)
class Fitted:
    """A head after fitting; `has_mean` says whether predictions include the training mean, `target_mean` (G,)."""

    predictor: Predictor
    target_mean: Tensor
    has_mean: bool
    record: dict[str, Any] = field(default_factory=dict)


def fit_head(train: TrainingSet, settings: FitSettings) -> Fitted:
    """Fit the head that the settings name; `record` holds pca_components, alpha and the like.

    Raises:
        EvalError: fewer than two spots, or too few groups to tune a penalty.
    """
    m = train.moments
    target_mean = m.y / max(m.n, 1)
    if settings.head == "pls":
        linear, count = fit_pls(m, settings.components)
        record: dict[str, Any] = {"pca_components": None, "alpha": None, "pls_components": count}
        return Fitted(linear, target_mean, True, record)
    spectrum = decompose(m, settings.pca)
    components = None if settings.pca is None else spectrum.components
    if settings.head == "knn":
        record = {"pca_components": components, "alpha": None}
        return Fitted(Neighbors(spectrum, train.gather(), settings.neighbors), target_mean, True, record)
    inner: dict[str, Any] = {}
    if settings.head == "ridge-tuned":
        groups = train.groups()
        alpha, inner["inner_pcc"] = tune_alpha(groups.parts, m, settings.pca)
        inner["inner_groups"] = {"level": groups.level, "count": len(groups.parts)}
    elif settings.alpha is not None:
        alpha = settings.alpha
    else:
        alpha = published_alpha(components or len(m.x), len(m.y))
    if settings.solver == "lsqr":
        coefficients = lsqr_coefficients(spectrum, train.gather(), alpha)
    else:
        coefficients = spectrum.coefficients(alpha)
    record = {"pca_components": components, "alpha": alpha, **inner}
    return Fitted(spectrum.linear(coefficients, intercept=settings.intercept), target_mean, settings.intercept, record)


def lsqr_coefficients(spectrum: Spectrum, spots: Batch, alpha: float) -> Tensor:
    """Scikit-learn's iterative ridge at its default tolerance, as hest-bench calls it: (K, G)."""
    Z = _components(spectrum, spots[0])
    fitted = Ridge(alpha=alpha, solver="lsqr", fit_intercept=False, max_iter=1000).fit(Z, spots[1])
    return torch.as_tensor(fitted.coef_.T.copy(), device=spectrum.basis.device)


class Neighbors:
    """Mean target of the nearest training spots, by Euclidean distance between principal components."""

    def __init__(self, spectrum: Spectrum, spots: Batch, neighbors: int) -> None:
        self._spectrum = spectrum
        count = min(neighbors, len(spots[0]))
        self._model = KNeighborsRegressor(count, algorithm="brute").fit(_components(spectrum, spots[0]), spots[1])

    def predict(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, G)."""
        predicted = self._model.predict(_components(self._spectrum, features.cpu().numpy()))
        return torch.as_tensor(predicted, device=features.device)


def _components(spectrum: Spectrum, features: NDArray[np.floating]) -> NDArray[np.float64]:
    centre, basis = spectrum.centre.cpu().numpy(), spectrum.basis.cpu().numpy()
    return np.asarray((np.asarray(features, dtype=np.float64) - centre) @ basis)  # (N, K)
