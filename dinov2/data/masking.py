"""iBOT's masks: rectangular blocks of patches, as in BEiT (arXiv 2106.08254) with DINOv2's batch rule (2304.07193).

A mask depends on (seed, step, image) only, so a process computes the rows it needs and gets the same as every other.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dinov2.data.seeding import keyed_generator

MIN_BLOCK_PATCHES = 4
MAX_BLOCK_FRACTION = 0.5  # of the grid
LOG_ASPECT = math.log(1 / 0.3)  # aspect ratios 0.3 .. 1 / 0.3
TRIES = 10


def block_mask(grid: tuple[int, int], target: int, generator: torch.Generator) -> Tensor:
    """Mask up to `target` patches with random blocks.

    Blocks are added until the target is reached or none of ten proposals fits. A proposal draws an area between 4
    patches and what is left of the target (half the grid at most), an aspect ratio, log-uniform in 0.3 .. 1 / 0.3, and
    a place; it must be shorter than the grid on both sides (sides of one patch apart) and add at least one patch and no
    more than is left. So the count never exceeds the target and can stay below it.

    Args:
        grid: rows and columns of patches.
        target: patches to mask, at least 0.
        generator: source of all randomness.

    Returns:
        Bool (rows, columns), true where masked.
    """
    rows, columns = grid
    mask = torch.zeros(rows, columns, dtype=torch.bool)  # (H, W)
    left = target
    while left > 0:
        added = _add_block(mask, min(left, int(MAX_BLOCK_FRACTION * rows * columns)), generator)
        if not added:
            break
        left -= added
    return mask


def global_batch_masks(
    seed: int,
    step: int,
    n_images: int,
    grid: tuple[int, int],
    probability: float,
    ratio_min_max: tuple[float, float],
    rows: Sequence[int] | None = None,
) -> Tensor:
    """Masks of one global batch, or of some of its images.

    int(n_images * probability) images are masked. The range of ratios is cut into that many equal parts, one an image:
    its target count is int(N * r), r uniform in its part. Which image gets which part, or none, is a random order.

    Args:
        seed: `train.seed`.
        step: optimisation step.
        n_images: global crops in the whole batch: 2 * global batch, all first crops before all second ones.
        grid: rows and columns of patches, N in all.
        probability: share of images to mask (`ibot.mask_sample_probability`).
        ratio_min_max: range of masked shares (`ibot.mask_ratio_min_max`).
        rows: images wanted, all by default.

    Returns:
        Bool (len(rows), N), raster order, equal to the same rows of the full result.
    """
    n_patches = grid[0] * grid[1]
    n_masked = int(n_images * probability)
    generator = keyed_generator(seed, "masks", step)
    edges = torch.linspace(*ratio_min_max, n_masked + 1, dtype=torch.float64)  # (n_masked + 1,)
    ratios = edges[:-1] + torch.rand(n_masked, dtype=torch.float64, generator=generator) * edges.diff()
    targets = torch.zeros(n_images, dtype=torch.int64)
    targets[:n_masked] = (n_patches * ratios).long()
    targets = targets[torch.randperm(n_images, generator=generator)]  # (n_images,)
    wanted = range(n_images) if rows is None else rows
    masks = torch.zeros(len(wanted), n_patches, dtype=torch.bool)  # (R, N)
    for place, image in enumerate(wanted):
        target = int(targets[image])
        if target:
            masks[place] = block_mask(grid, target, keyed_generator(seed, "mask", step, image)).flatten()
    return masks


def _add_block(mask: Tensor, limit: int, generator: torch.Generator) -> int:
    """Mask one more block of at most `limit` new patches in place; returns how many it added, 0 if none fitted."""
    rows, columns = mask.shape
    for u_area, u_aspect, u_top, u_left in torch.rand(TRIES, 4, dtype=torch.float64, generator=generator).tolist():
        area = MIN_BLOCK_PATCHES + u_area * (limit - MIN_BLOCK_PATCHES)
        aspect = math.exp((2 * u_aspect - 1) * LOG_ASPECT)
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height > max(rows - 1, 1) or width > max(columns - 1, 1):
            continue
        top, left = int(u_top * (rows - height + 1)), int(u_left * (columns - width + 1))
        block = mask[top : top + height, left : left + width]
        new = height * width - int(block.sum())
        if 0 < new <= limit:
            block.fill_(True)
            return new
    return 0
