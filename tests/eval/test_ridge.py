import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eval.errors import EvalError
from eval.gram import moments
from eval.ridge import decompose, published_alpha


def regression(n=700, d=400, g=12, seed=0):
    """Features with a decaying spectrum, as embeddings have, and targets of a mean far from 0, as log1p counts have."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.logspace(0, -3, d) @ rng.normal(size=(d, d)) + rng.normal(size=d)
    Y = X[:, :5] @ rng.normal(size=(5, g)) * 0.2 + rng.normal(size=(n, g)) + 3
    return X[: n * 2 // 3], Y[: n * 2 // 3], X[n * 2 // 3 :], Y[n * 2 // 3 :]


def fit(X, Y, pca=256):
    return decompose(moments([(X, Y)], X.mean(0), Y.shape[1]), pca)


def predict(linear, X):
    return linear.predict(torch.as_tensor(X)).numpy()


@pytest.mark.parametrize(("n", "d"), [(700, 400), (240, 400), (700, 30)])
def test_equals_full_svd_pca_and_converged_lsqr(n, d):
    X, Y, X_test, _ = regression(n, d)
    k = min(256, d, len(X))
    pipe = make_pipeline(StandardScaler(), PCA(n_components=k, svd_solver="full"))
    Z, Z_test = pipe.fit_transform(X), pipe.transform(X_test)
    alpha = 100 / (k * Y.shape[1])
    ridge = Ridge(solver="lsqr", alpha=alpha, tol=1e-8, max_iter=20000, fit_intercept=False)
    expected = ridge.fit(Z, Y).predict(Z_test)
    ours = fit(X, Y)
    assert ours.components == k
    np.testing.assert_allclose(predict(ours.ridge(alpha), X_test), expected, atol=1e-3)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("alpha", [0.01, 10.0])
def test_equals_scikit_learn_to_1e6(alpha, intercept):
    X, Y, X_test, _ = regression(600, 60)
    pipe = make_pipeline(StandardScaler(), PCA(40, svd_solver="full"), Ridge(alpha, fit_intercept=intercept))
    expected = pipe.fit(X, Y).predict(X_test)
    np.testing.assert_allclose(predict(fit(X, Y, 40).ridge(alpha, intercept=intercept), X_test), expected, atol=1e-6)


def test_one_decomposition_serves_all_penalties():
    X, Y, X_test, _ = regression(300, 30)
    spectrum = fit(X, Y, None)
    Z, Z_test = (StandardScaler().fit(X).transform(a) for a in (X, X_test))
    for alpha in (1e-3, 1.0, 1e3):
        expected = Ridge(alpha, fit_intercept=False).fit(Z, Y).predict(Z_test)
        np.testing.assert_allclose(predict(spectrum.ridge(alpha), X_test), expected, atol=1e-8)


def test_mean_pcc_agrees_with_the_published_call():
    X, Y, X_test, Y_test = regression()
    pipe = make_pipeline(StandardScaler(), PCA(n_components=256, random_state=1))
    Z, Z_test = pipe.fit_transform(X).astype(np.float32), pipe.transform(X_test).astype(np.float32)
    alpha = 100 / (256 * Y.shape[1])
    ridge = Ridge(solver="lsqr", alpha=alpha, random_state=1, fit_intercept=False, max_iter=1000)
    published, ours = ridge.fit(Z, Y).predict(Z_test), predict(fit(X, Y).ridge(alpha), X_test)

    def pcc(predicted):
        return np.mean([pearsonr(predicted[:, i], Y_test[:, i]).statistic for i in range(Y.shape[1])])

    assert 0.1 < pcc(ours) < 0.99
    assert pcc(ours) == pytest.approx(pcc(published), abs=0.005)


def test_components_are_limited_by_features_and_by_spots():
    X, Y, *_ = regression(n=90, d=40)
    assert fit(X, Y, 256).components == 40
    assert fit(X[:25], Y[:25], 256).components == 25
    assert fit(X, Y, 7).components == 7


def test_components_are_orthogonal_and_ordered():
    X, Y, *_ = regression(n=90, d=40)
    spectrum = fit(X, Y, 10)
    Z = (X - spectrum.centre.numpy()) @ spectrum.basis.numpy()
    np.testing.assert_allclose(Z.T @ Z, np.diag(spectrum.values), atol=1e-8)
    assert (np.diff(spectrum.values) < 0).all()


def test_directions_without_variance_predict_nothing():
    X, Y, X_test, _ = regression(n=90, d=10)
    X, X_test = np.hstack([X, X, np.ones((len(X), 1))]), np.hstack([X_test, X_test, np.full((len(X_test), 1), 50.0)])
    spectrum = fit(X, Y)
    assert spectrum.components == 21
    assert np.abs(predict(spectrum.ridge(0.1), X_test)).max() < 50


def test_a_feature_constant_in_training_is_seen_after_a_subtraction():
    X, Y, *_ = regression(n=90, d=10)
    X[:, 3] = np.where(np.arange(len(X)) < 40, 0.1, X[:, 3] * 1e3)
    shift = X.mean(0)
    whole, rest = moments([(X, Y)], shift, 12), moments([(X[40:], Y[40:])], shift, 12)
    weights = decompose(whole - rest).ridge(1e-3).weights
    assert (weights[3] == 0).all()
    assert (weights[2] != 0).all()


def test_planted_signal_reaches_the_correlation_that_theory_gives():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(6000, 30))
    signal = X @ rng.normal(size=(30, 5)) / np.sqrt(30)
    signal /= signal.std(axis=0)
    Y = signal + rng.normal(size=signal.shape)  # equal variances: correlation 1 / sqrt(2)
    predicted = predict(fit(X[:4000], Y[:4000]).ridge(0.1), X[4000:])
    r = [pearsonr(predicted[:, i], Y[4000:, i]).statistic for i in range(5)]
    assert np.mean(r) == pytest.approx(2**-0.5, abs=0.02)


def test_published_alpha():
    assert published_alpha(256, 50) == pytest.approx(0.0078125)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_alpha_must_be_positive(alpha):
    X, Y, *_ = regression(n=60, d=5)
    with pytest.raises(EvalError, match="above 0"):
        fit(X, Y).ridge(alpha)


def test_refuses_a_single_spot():
    X, Y, *_ = regression(n=60, d=5)
    with pytest.raises(EvalError, match="at least two"):
        fit(X[:1], Y[:1])
