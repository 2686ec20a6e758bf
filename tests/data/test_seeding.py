"""Seeds are stable and spread; the torch RNG is restored."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dinov2.data.seeding import derive_seed, keyed_generator, sample_seed, torch_seed

KEYS = st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=5)), max_size=4)


@given(KEYS, KEYS)
def test_different_keys_give_different_seeds(one: list[int | str], other: list[int | str]) -> None:
    assert (derive_seed(*one) == derive_seed(*other)) == (one == other)
    assert 0 <= derive_seed(*one) < 2**64


def test_seed_values_never_change() -> None:
    """A change here breaks the resuming of every run in progress."""
    assert sample_seed(0, 0) == 0xA9A19EE40A5E0B24
    assert sample_seed(1, 10**12) == 0x18C4A5D7023BEF05


def test_neighbouring_positions_are_uncorrelated() -> None:
    draws = []
    for position in range(2000):
        with torch_seed(sample_seed(0, position)):
            draws.append(torch.rand(1))
    series = torch.cat(draws) - 0.5
    assert abs(float((series[1:] * series[:-1]).mean() / series.var())) < 0.08
    assert abs(float(series.mean())) < 0.03


def test_rng_is_restored_also_after_an_error() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with torch_seed(7):
        first = torch.rand(2)
    with torch_seed(7):
        assert torch.equal(torch.rand(2), first)
    with pytest.raises(KeyError), torch_seed(8):
        raise KeyError
    assert torch.equal(torch.rand(3), expected)


def test_keyed_generator_leaves_the_global_rng_alone() -> None:
    before = torch.get_rng_state()
    one, two = (torch.rand(2, generator=keyed_generator(1, "x")) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), before)
