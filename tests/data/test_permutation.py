"""A bijection for every size, and one that looks drawn from all of them."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from dinov2.data.permutation import Permutation, permute, round_keys


def _order(n: int, key: int, count: int | None = None) -> np.ndarray:
    places = np.arange(n if count is None else count)
    return permute(n, places, np.array(round_keys(key), dtype=np.uint64)[:, None].repeat(len(places), 1))


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@example(n=1, key=0)
@example(n=2, key=2**64 - 1)
@example(n=2048, key=5)
@example(n=2049, key=5)
def test_bijection(n: int, key: int) -> None:
    assert (np.sort(_order(n, key)) == np.arange(n)).all()


@settings(deadline=None, max_examples=40)
@given(
    n=st.one_of(st.integers(1, 100), st.integers(1, 10**8), st.integers(2**61, 2**62)),
    keys=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    data=st.data(),
)
def test_one_by_one_and_many_agree(n: int, keys: list[int], data: st.DataObject) -> None:
    places = np.array([data.draw(st.integers(0, n - 1)) for _ in keys])
    many = permute(n, places, np.array([round_keys(key) for key in keys], dtype=np.uint64).T)
    assert many.tolist() == [Permutation(n, key)(int(place)) for key, place in zip(keys, places, strict=True)]
    assert ((many >= 0) & (many < n)).all()


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_orders_of_few_are_equally_likely(n: int) -> None:
    orders = list(permutations(range(n)))
    places = np.tile(np.arange(n), 40 * len(orders))
    keys = np.array([round_keys(key) for key in range(40 * len(orders))], dtype=np.uint64).T.repeat(n, 1)
    counts = Counter(map(tuple, permute(n, places, keys).reshape(-1, n).tolist()))
    assert chisquare([counts[order] for order in orders]).pvalue > 1e-3


def test_every_place_takes_every_value() -> None:
    n, draws = 40, 4000
    keys = np.array([round_keys(key) for key in range(draws)], dtype=np.uint64).T.repeat(n, 1)
    values = permute(n, np.tile(np.arange(n), draws), keys).reshape(draws, n)
    table = np.stack([np.bincount(values[:, place], minlength=n) for place in range(n)])
    assert chisquare(table.ravel(), ddof=2 * n - 2).pvalue > 1e-3


@pytest.mark.parametrize("n", [100_000_000, 2**27 + 1])
def test_a_stretch_of_a_large_order_is_uniform_and_without_runs(n: int) -> None:
    values = _order(n, 3, 20_000) / n
    assert kstest(values, "uniform").pvalue > 1e-3
    assert kstest(np.diff(values) % 1, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.03  # four standard deviations


@pytest.mark.parametrize("n", [0, -1, 2**62 + 1])
def test_impossible_sizes(n: int) -> None:
    with pytest.raises(ValueError, match="must be 1 to"):
        Permutation(n, 0)
