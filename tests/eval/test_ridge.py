import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eval.errors import EvalError
from eval.metrics import correlations
from eval.ridge import fit_probe, principal_axes, published_alpha, solve_ridge


def regression(n=700, d=400, g=12, seed=0):
    """Features with a decaying spectrum, as embeddings have, and targets of a mean far from 0, as log1p counts have."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.logspace(0, -3, d) @ rng.normal(size=(d, d)) + rng.normal(size=d)
    Y = X[:, :5] @ rng.normal(size=(5, g)) * 0.2 + rng.normal(size=(n, g)) + 3
    return X[: n * 2 // 3], Y[: n * 2 // 3], X[n * 2 // 3 :], Y[n * 2 // 3 :]


@pytest.mark.parametrize(("n", "d"), [(700, 400), (240, 400), (700, 30)])
def test_equals_full_svd_pca_and_converged_lsqr(n, d):
    X, Y, X_test, _ = regression(n, d)
    k = min(256, d, len(X))
    pipe = make_pipeline(StandardScaler(), PCA(n_components=k, svd_solver="full"))
    Z, Z_test = pipe.fit_transform(X), pipe.transform(X_test)
    alpha = 100 / (k * Y.shape[1])
    ridge = Ridge(solver="lsqr", alpha=alpha, tol=1e-8, max_iter=20000, fit_intercept=False)
    expected = ridge.fit(Z, Y).predict(Z_test)

    probe = fit_probe(X, Y, pca=256)
    assert probe.components == k
    assert probe.alpha == pytest.approx(alpha)
    np.testing.assert_allclose(probe.predict(X_test), expected, atol=1e-3)


def test_mean_pcc_agrees_with_the_published_call():
    X, Y, X_test, Y_test = regression()
    pipe = make_pipeline(StandardScaler(), PCA(n_components=256, random_state=1))
    Z, Z_test = pipe.fit_transform(X).astype(np.float32), pipe.transform(X_test).astype(np.float32)
    ridge = Ridge(solver="lsqr", alpha=100 / (256 * Y.shape[1]), random_state=1, fit_intercept=False, max_iter=1000)
    published = correlations(Y_test, ridge.fit(Z, Y).predict(Z_test).astype(np.float64)).mean()
    ours = correlations(Y_test, fit_probe(X, Y).predict(X_test)).mean()
    assert 0.1 < ours < 0.99
    assert ours == pytest.approx(published, abs=0.005)


def test_components_are_limited_by_features_and_by_spots():
    X, Y, *_ = regression(n=90, d=40)
    assert fit_probe(X, Y, pca=256).components == 40
    assert fit_probe(X[:25], Y[:25], pca=256).components == 25
    assert fit_probe(X, Y, pca=7).components == 7
    assert fit_probe(X, Y, pca=None).components is None


def test_pca_over_all_features_is_a_rotation():
    X, Y, X_test, _ = regression(n=300, d=40)
    kept, none = (fit_probe(X, Y, pca=pca, alpha=0.3).predict(X_test) for pca in (40, None))
    np.testing.assert_allclose(kept, none, atol=1e-8)


@pytest.mark.parametrize("shape", [(50, 20), (20, 50)])
def test_principal_axes_are_orthonormal_and_ordered(shape):
    X = np.random.default_rng(0).normal(size=shape)
    X -= X.mean(axis=0)
    axes = principal_axes(X, 10)
    np.testing.assert_allclose(axes.T @ axes, np.eye(10), atol=1e-10)
    variances = (X @ axes).var(axis=0)
    assert (np.diff(variances) < 0).all()
    np.testing.assert_allclose(variances, np.sort(np.linalg.svd(X)[1] ** 2)[::-1][:10] / len(X))


def test_directions_without_variance_predict_nothing():
    X, Y, X_test, _ = regression(n=90, d=10)
    X, X_test = np.hstack([X, X, np.ones((len(X), 1))]), np.hstack([X_test, X_test, np.full((len(X_test), 1), 50.0)])
    probe = fit_probe(X, Y)
    assert probe.components == 21
    assert np.abs(probe.predict(X_test)).max() < 50


@pytest.mark.parametrize("shape", [(60, 10), (10, 60)])
def test_solve_ridge_satisfies_the_normal_equations(shape):
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=shape), rng.normal(size=(shape[0], 3))
    W = solve_ridge(X, Y, 0.7)
    np.testing.assert_allclose(X.T @ X @ W + 0.7 * W, X.T @ Y, atol=1e-10)


def test_planted_signal_reaches_the_correlation_that_theory_gives():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(6000, 30))
    signal = X @ rng.normal(size=(30, 5)) / np.sqrt(30)
    signal /= signal.std(axis=0)
    Y = signal + rng.normal(size=signal.shape)  # equal variances: correlation 1 / sqrt(2)
    predicted = fit_probe(X[:4000], Y[:4000]).predict(X[4000:])
    assert correlations(Y[4000:], predicted).mean() == pytest.approx(2**-0.5, abs=0.02)


def test_training_mean_is_what_an_intercept_adds():
    X, Y, X_test, _ = regression(n=300, d=40)
    probe = fit_probe(X, Y, pca=None, alpha=0.5)
    ridge = Ridge(alpha=0.5, fit_intercept=True).fit(probe.scaler.transform(X), Y)
    expected = ridge.predict(probe.scaler.transform(X_test))
    np.testing.assert_allclose(probe.predict(X_test) + probe.target_mean, expected, atol=1e-8)


def test_published_alpha():
    assert published_alpha(256, 50) == pytest.approx(0.0078125)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(EvalError, match="above 0"):
        solve_ridge(np.eye(3), np.eye(3), alpha)


def test_refuses_nan_and_a_single_spot():
    X, Y, *_ = regression(n=60, d=5)
    with pytest.raises(EvalError, match="at least two"):
        fit_probe(X[:1], Y[:1])
    X[3, 2] = np.nan
    with pytest.raises(EvalError, match="1 training features are NaN"):
        fit_probe(X, Y)


def test_lsqr_is_the_published_call():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(120, 5)) @ rng.normal(size=(5, 30)) + 0.05 * rng.normal(size=(120, 30))
    Y = rng.normal(size=(120, 4)) + 2.0
    ours = fit_probe(X, Y, pca=None, solver="lsqr").predict(X)
    scaled = StandardScaler().fit_transform(X)
    theirs = Ridge(alpha=100 / (30 * 4), solver="lsqr", fit_intercept=False).fit(scaled, Y).predict(scaled)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    assert not np.allclose(ours, fit_probe(X, Y, pca=None).predict(X), atol=1e-6)
