"""Nothing is lost or repeated within an epoch, and the ranks tile the global batch."""

import sys
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov2.data.samplers import RankBatchSampler, ShuffledStream


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 200), seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6))
def test_every_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    stream = ShuffledStream(n, seed)
    assert sorted(stream.index_at(epoch * n + place) for place in range(n)) == list(range(n))


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 50), seed=st.integers(0, 99), positions=st.lists(st.integers(0, 500), min_size=1, max_size=20))
def test_positions_mean_the_same_in_any_order(n: int, seed: int, positions: list[int]) -> None:
    stream = ShuffledStream(n, seed)
    visited = {position: stream.index_at(position) for position in positions}
    assert all(ShuffledStream(n, seed).index_at(position) == index for position, index in visited.items())


@settings(deadline=None, max_examples=50)
@given(
    n=st.integers(1, 2000),
    seed=st.integers(0, 2**63),
    positions=st.lists(st.integers(0, 10**12), max_size=30),
)
def test_many_positions_at_once(n: int, seed: int, positions: list[int]) -> None:
    stream = ShuffledStream(n, seed)
    assert stream.indices_at(positions).tolist() == [stream.index_at(position) for position in positions]


@settings(deadline=None, max_examples=50)
@given(
    n=st.integers(1, 300),
    seed=st.integers(0, 99),
    phases=st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 9)), min_size=1, max_size=5),
)
def test_nothing_is_lost_or_repeated_when_ranks_change(n: int, seed: int, phases: list[tuple[int, int]]) -> None:
    """A run of several phases with 1 to 12 ranks, each phase resumed at the step where the one before stopped."""
    seen: list[int] = []
    step = 0
    for world_size, steps in phases:
        samplers = [RankBatchSampler(12, rank, world_size, step) for rank in range(world_size)]
        streams = [ShuffledStream(n, seed) for _ in range(world_size)]
        for parts in islice(zip(*samplers, strict=True), steps):
            for stream, part in zip(streams, parts, strict=True):
                seen += [stream.index_at(position) for position in part]
        step += steps
    for start in range(0, len(seen), n):
        epoch = seen[start : start + n]
        assert len(set(epoch)) == len(epoch)
    counts = np.bincount(seen, minlength=n)
    assert counts.max(initial=0) - counts.min() <= 1


def test_a_stream_of_a_hundred_million_keeps_nothing() -> None:
    stream = ShuffledStream(100_000_000, 0)
    tiles = stream.indices_at(np.arange(99_999_000, 100_001_000))
    assert len(np.unique(tiles[:1000])) == len(np.unique(tiles[1000:])) == 1000
    assert sum(sys.getsizeof(value) for value in vars(stream).values()) < 1000


def test_epochs_and_seeds_differ() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        stream = ShuffledStream(50, seed)
        return [stream.index_at(epoch * 50 + place) for place in range(50)]

    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@settings(max_examples=50)
@given(world_size=st.integers(1, 9), per_rank=st.integers(1, 7), start=st.integers(0, 1000), steps=st.integers(1, 4))
def test_ranks_tile_the_global_batches(world_size: int, per_rank: int, start: int, steps: int) -> None:
    size = world_size * per_rank
    samplers = [RankBatchSampler(size, rank, world_size, start) for rank in range(world_size)]
    for step, parts in enumerate(islice(zip(*samplers, strict=True), steps), start):
        assert [p for part in parts for p in part] == list(range(step * size, (step + 1) * size))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0, 4, 0), "train.global_batch_size 10 must be a positive multiple of the 4"),
        ((0, 0, 1, 0), "positive multiple"),
        ((8, 4, 4, 0), "rank 4"),
        ((8, 0, 4, -1), "start_step -1"),
    ],
)
def test_impossible_batches(arguments: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankBatchSampler(*arguments)


def test_empty_stream() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ShuffledStream(0, 0)


@settings(max_examples=30)
@given(world_size=st.integers(1, 4), micro=st.integers(1, 5), parts=st.integers(1, 4), start=st.integers(0, 100))
def test_micro_batches_tile_a_rank_s_part(world_size: int, micro: int, parts: int, start: int) -> None:
    size = world_size * micro * parts
    for rank in range(world_size):
        whole = RankBatchSampler(size, rank, world_size, start)
        cut = list(islice(RankBatchSampler(size, rank, world_size, start, parts), 2 * parts))
        assert all(len(part) == micro for part in cut)
        assert [p for part in cut[:parts] for p in part] == whole.positions(start)
        assert [p for part in cut[parts:] for p in part] == whole.positions(start + 1)


def test_micro_batches_must_be_equal() -> None:
    with pytest.raises(ValueError, match="10 samples a step cannot be cut into 3"):
        RankBatchSampler(10, accumulate=3)
