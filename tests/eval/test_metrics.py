import numpy as np
import pytest
from scipy.stats import pearsonr

from eval.metrics import correlations, mae, mean_std, mse


def test_pearson_equals_scipy():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(50, 7)) + 3
    b = 0.5 * a + rng.normal(size=a.shape)
    expected = [pearsonr(a[:, i], b[:, i]).statistic for i in range(7)]
    np.testing.assert_allclose(correlations(a, b).pcc, expected, atol=1e-12)


def test_pcc10_is_the_mean_of_the_ten_highest():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40, 12))
    scores = correlations(a, rng.normal(size=a.shape))
    by_hand = (scores.pcc.sum() - np.sort(scores.pcc)[0] - np.sort(scores.pcc)[1]) / 10
    assert scores.top(10) == pytest.approx(by_hand)
    assert scores.top(20) == pytest.approx(scores.mean())


def test_constant_genes_are_named_and_left_out():
    a = np.random.default_rng(0).normal(size=(30, 4))
    b = a.copy()
    a[:, 1] = 2.0
    b[:, 3] = 0.1 + 1e-14 * np.arange(30)
    scores = correlations(a, b)
    assert scores.excluded == {1: "constant in the held-out spots", 3: "constant prediction"}
    assert scores.mean() == pytest.approx(1.0)
    assert np.isnan(scores.pcc[[1, 3]]).all()


def test_errors_by_hand():
    a, b = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.0], [3.0, 5.0]])
    assert mae(a, b) == pytest.approx(0.75)
    assert mse(a, b) == pytest.approx(1.25)


def test_std_has_no_degree_of_freedom_removed():
    assert mean_std([1.0, 3.0]) == {"mean": 2.0, "std": 1.0}


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="same shape"):
        correlations(np.zeros((3, 2)), np.zeros((3, 1)))
