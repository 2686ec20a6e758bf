"""From samples to the batch of one process: crops stacked crop-major as in DINOv2, and the iBOT masks of its images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dinov2.data.masking import global_batch_masks
from dinov2.data.samples import Sample

BATCH_TENSORS = ("global_crops", "local_crops", "masks", "mask_indices", "mask_weights")


@dataclass
class MultiCropBatch:
    """One process's part of a step; B samples, n local crops each, N patches a global crop.

    Crop-major: row c * B + i is crop c of sample i, for global crops, local crops and masks alike.
    """

    global_crops: Tensor  # (2B, 3, S, S) float32
    local_crops: Tensor  # (nB, 3, s, s) float32
    masks: Tensor  # (2B, N) bool
    mask_indices: Tensor  # (M,) int64: masked patches among the 2B * N, rising
    mask_weights: Tensor  # (M,) float32: 1 / masked patches of the patch's image
    step: int
    positions: list[int]  # (B,) places in the global stream
    paths: list[str]  # (B,) where the pixels come from
    bad: list[tuple[str, str]]  # (path, reason) of tiles that were replaced

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "MultiCropBatch":
        """The same batch with its tensors on a device."""
        moved = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in BATCH_TENSORS}
        return replace(self, **moved)

    def pin_memory(self) -> "MultiCropBatch":
        """The same batch in page-locked memory; torch's DataLoader calls this."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in BATCH_TENSORS})


@dataclass
class UnreadableBatch:
    """Stands for a batch with a sample that no replacement could fill."""

    bad: list[tuple[str, str]]
    n_samples: int


class MultiCropCollator:
    """Collate function: samples of consecutive or any other positions of one step -> batch.

    The masks of a step are defined over the global batch, so that they do not depend on the number of processes; each
    computes the rows of its samples.

    Args:
        seed: `train.seed`.
        global_batch_size: samples in a step over all processes.
        grid: rows and columns of patches in a global crop.
        mask_probability: share of global crops to mask.
        mask_ratio_min_max: range of masked shares of those.
    """

    def __init__(
        self,
        seed: int,
        global_batch_size: int,
        grid: tuple[int, int],
        mask_probability: float,
        mask_ratio_min_max: tuple[float, float],
    ) -> None:
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.grid = grid
        self.mask_probability = mask_probability
        self.mask_ratio_min_max = mask_ratio_min_max

    def __call__(self, samples: Sequence[Sample]) -> MultiCropBatch | UnreadableBatch:
        """Stack samples of one step."""
        bad = [failure for sample in samples for failure in sample.bad]
        crops = [sample.crops for sample in samples if sample.crops is not None]
        if len(crops) < len(samples):
            return UnreadableBatch(bad, len(samples))
        positions = [sample.position for sample in samples]
        step = positions[0] // self.global_batch_size
        masks = self._masks(step, positions)  # (2B, N)
        counts = masks.sum(1, keepdim=True).clamp(min=1)  # (2B, 1)
        mask_indices = masks.flatten().nonzero().flatten()  # (M,)
        return MultiCropBatch(
            global_crops=_stack_crop_major([c["global_crops"] for c in crops]),
            local_crops=_stack_crop_major([c["local_crops"] for c in crops]),
            masks=masks,
            mask_indices=mask_indices,
            mask_weights=counts.float().reciprocal().expand_as(masks)[masks],  # (M,)
            step=step,
            positions=positions,
            paths=[sample.path for sample in samples],
            bad=bad,
        )

    def _masks(self, step: int, positions: list[int]) -> Tensor:
        size = self.global_batch_size
        rows = [crop * size + position % size for crop in range(2) for position in positions]
        return global_batch_masks(
            self.seed, step, 2 * size, self.grid, self.mask_probability, self.mask_ratio_min_max, rows
        )


def _stack_crop_major(crops: list[list[Tensor]]) -> Tensor:
    """B lists of n crops (3, s, s) -> (nB, 3, s, s); without crops, (0, 3, 0, 0)."""
    n_crops = len(crops[0])
    if n_crops == 0:
        return torch.empty(0, 3, 0, 0)
    return torch.stack([sample[number] for number in range(n_crops) for sample in crops])
