import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import PLSRegression
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eval.errors import EvalError
from eval.gram import moments, total
from eval.heads import TrainingSet, fit_head
from eval.settings import FitSettings
from eval.tuned import SHARES, Groups


def spots(n=120, d=12, g=4, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) @ rng.normal(size=(d, d))
    return X, X @ rng.normal(size=(d, g)) * 0.1 + rng.normal(size=(n, g)) + 2


def training_set(X, Y, groups=3):
    parts = [moments([b], X[0], Y.shape[1]) for b in zip(np.split(X, groups), np.split(Y, groups), strict=True)]
    return TrainingSet(total(parts), lambda: Groups("part", tuple(parts)), lambda: (X, Y))


def predictions(settings, n=120, d=12, g=4):
    (X, Y), (X_test, _) = spots(n, d, g), spots(30, d, g, seed=1)
    fitted = fit_head(training_set(X, Y), settings)
    return fitted, fitted.predictor.predict(torch.as_tensor(X_test)).numpy(), X, Y, X_test


@pytest.mark.parametrize(("d", "g"), [(12, 4), (4, 9), (12, 1)])
@pytest.mark.parametrize("components", [1, 3])
def test_pls_equals_scikit_learn(components, d, g):
    fitted, ours, X, Y, X_test = predictions(FitSettings(head="pls", components=components), d=d, g=g)
    expected = PLSRegression(components, tol=1e-22, max_iter=50000).fit(X, Y).predict(X_test).reshape(ours.shape)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert fitted.record["pls_components"] == components


def test_pls_stops_where_features_have_no_more():
    fitted, ours, X, Y, X_test = predictions(FitSettings(head="pls", components=50), d=5)
    assert fitted.record["pls_components"] == 5
    expected = Ridge(1e-9).fit(X, Y).predict(X_test)  # all components of PLS are ordinary least squares
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_knn_equals_scikit_learn():
    _, ours, X, Y, X_test = predictions(FitSettings(head="knn", pca=6, neighbors=7))
    pipe = make_pipeline(StandardScaler(), PCA(6, svd_solver="full"), KNeighborsRegressor(7))
    np.testing.assert_allclose(ours, pipe.fit(X, Y).predict(X_test), atol=1e-9)


def test_tuned_ridge_chooses_what_a_loop_over_folds_chooses():
    fitted, ours, X, Y, X_test = predictions(FitSettings(head="ridge-tuned", intercept=True))
    score = np.zeros(len(SHARES))
    for held_out in np.split(np.arange(120), 3):
        rest = np.setdiff1d(np.arange(120), held_out)
        for i, share in enumerate(SHARES):
            pipe = make_pipeline(StandardScaler(), Ridge(share * len(rest)))
            p = pipe.fit(X[rest], Y[rest]).predict(X[held_out])
            score[i] += np.mean([np.corrcoef(p[:, j], Y[held_out, j])[0, 1] for j in range(4)]) / 3
    np.testing.assert_allclose(list(fitted.record["inner_pcc"].values()), score, atol=1e-6)
    alpha = SHARES[int(np.argmax(score))] * 120
    assert fitted.record["alpha"] == pytest.approx(alpha)
    expected = make_pipeline(StandardScaler(), Ridge(alpha)).fit(X, Y).predict(X_test)
    np.testing.assert_allclose(ours, expected, atol=1e-8)


def test_tuning_needs_two_groups():
    X, Y = spots()
    with pytest.raises(EvalError, match=r"0 group.*leaving one group out needs two"):
        fit_head(training_set(X, Y, groups=1), FitSettings(head="ridge-tuned"))


def test_lsqr_is_the_published_call():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(120, 5)) @ rng.normal(size=(5, 30)) + 0.05 * rng.normal(size=(120, 30))
    Y = rng.normal(size=(120, 4)) + 2.0
    ours, exact = (
        fit_head(training_set(X, Y), FitSettings(solver=solver, pca=20)).predictor.predict(torch.as_tensor(X)).numpy()
        for solver in ("lsqr", "exact")
    )
    Z = make_pipeline(StandardScaler(), PCA(20, svd_solver="full")).fit_transform(X)
    theirs = Ridge(alpha=100 / (20 * 4), solver="lsqr", fit_intercept=False).fit(Z, Y).predict(Z)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert not np.allclose(ours, exact, atol=1e-6)


def test_the_mean_is_what_an_intercept_adds():
    fitted, without, *_ = predictions(FitSettings())
    _, with_mean, *_ = predictions(FitSettings(intercept=True))
    np.testing.assert_allclose(with_mean, without + fitted.target_mean.numpy(), atol=1e-10)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pca": 0}, "1 or more"),
        ({"alpha": 0.0}, "above 0"),
        ({"alpha": float("nan")}, "above 0"),
        ({"head": "rigde"}, "Nearest: ridge"),
        ({"head": "pls", "alpha": 1.0}, r"'pls' has no use for it.*belongs to \(ridge\)"),
        ({"components": 3}, r"belongs to \(pls\)"),
        ({"neighbors": 0}, "1 or more"),
    ],
)
def test_impossible_settings(values, message):
    with pytest.raises(EvalError, match=message):
        FitSettings(**values)
