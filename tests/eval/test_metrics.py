import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from eval.metrics import Correlations, correlations, errors, mean_std, sums


def summed(measured, predicted, raw_offset=0.0, centre=0.0):
    measured, predicted = (torch.as_tensor(np.asarray(a, dtype=float) - centre) for a in (measured, predicted))
    return sums(measured, predicted, torch.full((measured.shape[1],), raw_offset, dtype=torch.float64))


def test_correlation_equals_scipy():
    rng = np.random.default_rng(0)
    measured, predicted = rng.normal(size=(50, 6)), rng.normal(size=(50, 6))
    found = correlations(summed(measured, predicted, centre=3.0))
    expected = [pearsonr(measured[:, i], predicted[:, i]).statistic for i in range(6)]
    np.testing.assert_allclose(found.pcc, expected, atol=1e-12)
    assert found.excluded == {}
    assert found.mean() == pytest.approx(np.mean(expected))


def test_constant_columns_are_left_out_and_named():
    rng = np.random.default_rng(0)
    measured, predicted = rng.normal(size=(20, 3)), rng.normal(size=(20, 3))
    measured[:, 1], predicted[:, 2] = 0.1, 7.3
    found = correlations(summed(measured, predicted))
    assert found.excluded == {1: "constant in the held-out spots", 2: "constant prediction"}
    assert np.isnan(found.pcc).tolist() == [False, True, True]


def test_pcc10_by_hand():
    scores = Correlations(np.array([*np.linspace(0, 0.9, 12), np.nan]), {12: "constant prediction"})
    assert scores.top(10) == pytest.approx(np.linspace(0, 0.9, 12)[2:].mean())
    assert Correlations(np.array([0.2, 0.4]), {}).top(10) == pytest.approx(0.3)
    assert np.isnan(Correlations(np.array([np.nan]), {}).top(10))


def test_errors_by_hand():
    measured, predicted = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.5, 2.0], [2.0, 8.0]])
    found = errors(summed(measured, predicted, raw_offset=-1.0))
    assert found["mae_centred"] == pytest.approx((0.5 + 0 + 1 + 4) / 4)
    assert found["mse_centred"] == pytest.approx((0.25 + 0 + 1 + 16) / 4)
    assert found["mae"] == pytest.approx((0.5 + 1 + 2 + 3) / 4)
    assert found["mse"] == pytest.approx((0.25 + 1 + 4 + 9) / 4)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(1, 39), st.integers(0, 2**32 - 1))
def test_sums_of_parts_are_those_of_the_whole(n, cut, seed):
    rng = np.random.default_rng(seed)
    measured, predicted = rng.normal(size=(n, 3)), rng.normal(size=(n, 3))
    cut = min(cut, n - 1)
    whole = summed(measured, predicted, 0.3)
    parts = summed(measured[:cut], predicted[:cut], 0.3) + summed(measured[cut:], predicted[cut:], 0.3)
    np.testing.assert_allclose(correlations(parts).pcc, correlations(whole).pcc, atol=1e-9)
    assert errors(parts) == pytest.approx(errors(whole))


def test_sums_spread_over_a_larger_panel():
    rng = np.random.default_rng(0)
    s = summed(rng.normal(size=(9, 2)), rng.normal(size=(9, 2)))
    wide = s.spread(np.array([3, 1]), 5)
    assert wide.n.tolist() == [0, 9, 0, 9, 0]
    assert correlations(wide).pcc[[3, 1]] == pytest.approx(correlations(s).pcc)
    assert errors(wide) == pytest.approx(errors(s))


def test_mean_std_uses_ddof_0():
    assert mean_std([1.0, 3.0]) == {"mean": 2.0, "std": 1.0}
