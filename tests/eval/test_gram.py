import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.gram import moments, total

FIELDS = ("x", "y", "xx", "xy", "yy")


def data(n=40, d=5, g=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(np.float32) + 4, rng.normal(size=(n, g)) + 1


def test_moments_are_the_sums_in_float64():
    X, Y = data()
    c = X[0].astype(np.float64)
    m = moments([(X, Y)], c, 3)
    x = X.astype(np.float64) - c
    for found, expected in zip(
        (m.x, m.y, m.xx, m.xy, m.yy), (x.sum(0), Y.sum(0), x.T @ x, x.T @ Y, (Y**2).sum(0)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert m.n == 40


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=6), st.integers(0, 100))
def test_batches_sums_and_differences_agree(sizes, seed):
    X, Y = data(sum(sizes), seed=seed)
    c = X.mean(0)
    ends = np.cumsum(sizes)[:-1]
    batches = list(zip(np.split(X, ends), np.split(Y, ends), strict=True))
    whole = moments([(X, Y)], c, 3)
    parts = [moments([b], c, 3) for b in batches]
    for other in (moments(batches, c, 3), total(parts), (whole - parts[0]) + parts[0]):
        assert other.n == whole.n
        for name in FIELDS:
            np.testing.assert_allclose(getattr(other, name), getattr(whole, name), atol=1e-9)


def test_only_one_batch_is_held_at_a_time():
    alive = []

    class Block(np.ndarray):
        def __del__(self):
            alive.remove(id(self))

    def stream():
        for i in range(6):
            X, Y = data(seed=i)
            block = X.view(Block)
            alive.append(id(block))
            del X
            yield block, Y
            del block
            assert len(alive) <= 1

    assert moments(stream(), np.zeros(5), 3).n == 240


def test_selected_targets():
    X, Y = data()
    m, chosen = (moments([(X, y)], X[0], y.shape[1]) for y in (Y, Y[:, [2, 0]]))
    for name in FIELDS:
        np.testing.assert_allclose(getattr(m.targets([2, 0]), name), getattr(chosen, name))


def test_a_mean_far_from_zero_costs_no_digits():
    X, Y = data(2000)
    X = X.astype(np.float64) + 1e6
    m = moments([(X, Y)], X[0], 3)
    variance = m.xx.diagonal() / m.n - (m.x / m.n) ** 2
    np.testing.assert_allclose(variance, X.var(0), rtol=1e-9)
    assert variance.sqrt().numpy() == pytest.approx(np.ones(5), abs=0.1)
