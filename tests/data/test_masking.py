"""Block masks: counts, shapes, the batch rule, and independence of the slicing."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dinov2.data.masking import block_mask, global_batch_masks
from dinov2.data.seeding import keyed_generator

GRIDS = st.tuples(st.integers(1, 20), st.integers(1, 20))


@settings(deadline=None, max_examples=100)
@given(grid=GRIDS, share=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_block_mask_never_exceeds_its_target(grid: tuple[int, int], share: float, seed: int) -> None:
    target = int(share * grid[0] * grid[1])
    mask = block_mask(grid, target, keyed_generator(seed))
    assert mask.shape == grid
    assert mask.dtype == torch.bool
    assert int(mask.sum()) <= target


def test_block_mask_comes_close_to_its_target() -> None:
    counts = [int(block_mask((16, 16), 100, keyed_generator(seed)).sum()) for seed in range(300)]
    assert sum(counts) / len(counts) > 95


def test_single_block_is_a_rectangle_of_the_allowed_shape() -> None:
    for seed in range(300):
        mask = block_mask((20, 12), 4, keyed_generator(seed))  # a block of 4 patches uses up the target
        rows, columns = mask.any(1), mask.any(0)
        height, width = int(rows.sum()), int(columns.sum())
        if int(mask.sum()) == 4 and height * width == 4:
            assert (height, width) in {(1, 4), (2, 2), (4, 1)}


@settings(deadline=None, max_examples=40)
@given(
    grid=st.tuples(st.integers(2, 10), st.integers(2, 10)),
    n_images=st.integers(1, 24),
    probability=st.floats(0, 1),
    low=st.floats(0, 0.5),
    width=st.floats(0, 0.5),
    seed=st.integers(0, 1000),
)
def test_batch_rule(
    grid: tuple[int, int], n_images: int, probability: float, low: float, width: float, seed: int
) -> None:
    n_patches = grid[0] * grid[1]
    masks = global_batch_masks(seed, 3, n_images, grid, probability, (low, low + width))
    assert masks.shape == (n_images, n_patches)
    counts = sorted(masks.sum(1).tolist(), reverse=True)
    n_masked = int(n_images * probability)
    assert counts[n_masked:] == [0] * (n_images - n_masked)
    upper = [int(n_patches * (low + width * (i + 1) / n_masked) + 1e-9) for i in range(n_masked)]
    assert all(count <= bound for count, bound in zip(counts, sorted(upper, reverse=True), strict=False))


@settings(deadline=None, max_examples=30)
@given(per_rank=st.integers(1, 4), world_size=st.integers(1, 4), seed=st.integers(0, 99), step=st.integers(0, 10**6))
def test_rows_equal_those_of_the_whole_batch(per_rank: int, world_size: int, seed: int, step: int) -> None:
    size = per_rank * world_size
    arguments = (seed, step, 2 * size, (5, 7), 0.5, (0.1, 0.5))
    whole = global_batch_masks(*arguments)
    rebuilt = torch.zeros_like(whole)
    for rank in range(world_size):
        rows = [crop * size + rank * per_rank + i for crop in range(2) for i in range(per_rank)]
        rebuilt[rows] = global_batch_masks(*arguments, rows=rows)
    assert torch.equal(rebuilt, whole)


def test_steps_and_seeds_differ() -> None:
    masks = {
        tuple(global_batch_masks(seed, step, 4, (8, 8), 0.5, (0.1, 0.5)).flatten().tolist())
        for seed in range(3)
        for step in range(3)
    }
    assert len(masks) == 9


def _reference_mask(grid: tuple[int, int], target: int, rng: random.Random) -> set[tuple[int, int]]:
    """The published procedure in another form: a growing set of cells."""
    cells: set[tuple[int, int]] = set()
    for _ in range(target):
        room = min(target - len(cells), grid[0] * grid[1] / 2)
        for _ in range(10):
            area, aspect = rng.uniform(4, room), 0.3 ** rng.uniform(-1, 1)
            h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if h >= grid[0] or w >= grid[1]:
                continue
            top, left = rng.randint(0, grid[0] - h), rng.randint(0, grid[1] - w)
            new = {(top + i, left + j) for i in range(h) for j in range(w)} - cells
            if 0 < len(new) <= room:
                cells |= new
                break
        else:
            break
    return cells


@pytest.mark.parametrize(("grid", "target"), [((16, 16), 25), ((16, 16), 128), ((8, 8), 30), ((7, 14), 12)])
def test_masks_are_distributed_as_published(grid: tuple[int, int], target: int) -> None:
    rng = random.Random(0)
    reference = [_reference_mask(grid, target, rng) for _ in range(500)]
    ours = [block_mask(grid, target, keyed_generator("published", seed)) for seed in range(500)]
    measured = {
        "count": ([int(m.sum()) for m in ours], [len(cells) for cells in reference]),
        "rows": ([int(m.any(1).sum()) for m in ours], [len({i for i, _ in cells}) for cells in reference]),
        "columns": ([int(m.any(0).sum()) for m in ours], [len({j for _, j in cells}) for cells in reference]),
        "centre": (
            [float(m.nonzero().float().mean()) for m in ours],
            [sum(i + j for i, j in cells) / 2 / len(cells) for cells in reference],
        ),
    }
    for name, (one, other) in measured.items():
        assert stats.ks_2samp(one, other).pvalue > 1e-3, name
