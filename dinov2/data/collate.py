"""From samples to the batch of one process, in a worker: iBOT's masks, and the crops or what the device makes them of.

Rows are crop-major, as in DINOv2: row c * B + i is crop c of sample i, for global crops, local crops and masks alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from dinov2.data.augmentations import MultiCropAugmentation
from dinov2.data.device_augmentation import DeviceAugmentation
from dinov2.data.device_plan import CropPlan, make_plan
from dinov2.data.masking import global_batch_masks
from dinov2.data.samples import Sample
from dinov2.data.tiles import PackedTiles, pack_tiles
from dinov2.data.workers import share
from dinov2.utils.schema import CropsSection

N_GLOBAL = 2


@dataclass
class StepPart:
    """What a process's part of a step has besides pixels; B samples, N patches a global crop."""

    masks: Tensor  # (2B, N) bool
    mask_indices: Tensor  # (M,) int64: masked patches among the 2B * N, rising
    mask_weights: Tensor  # (M,) float32: 1 / masked patches of the patch's image
    step: int
    positions: list[int]  # (B,) places in the global stream
    paths: list[str]  # (B,) where the pixels come from
    bad: list[tuple[str, str]]  # (path, reason) of tiles that were replaced

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch with its tensors on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; torch's DataLoader calls this."""
        return self._map(Tensor.pin_memory)

    def share_memory(self) -> Self:
        """The same batch in memory that other processes can map; raises `LoaderError` where there is too little."""
        return self._map(share)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = function(value)
            elif isinstance(value, CropPlan | PackedTiles):
                changed[field.name] = value.map(function)
        return replace(self, **changed)


@dataclass
class MultiCropBatch(StepPart):
    """One process's part of a step, n local crops each, ready for the model."""

    global_crops: Tensor  # (2B, 3, S, S) float32
    local_crops: Tensor  # (nB, 3, s, s) float32


@dataclass
class TileBatch(StepPart):
    """One process's part of a step whose crops the device still has to make."""

    tiles: PackedTiles
    global_plan: CropPlan
    local_plan: CropPlan

    def render(self, augmentation: DeviceAugmentation) -> MultiCropBatch:
        """Move everything to the augmentation's device and make the crops there."""
        crops = augmentation.crops
        moved = self.to(augmentation.device, non_blocking=True)
        shared = {field.name: getattr(moved, field.name) for field in fields(StepPart)}
        return MultiCropBatch(
            global_crops=augmentation.render(moved.tiles, moved.global_plan, crops.global_crops_size),
            local_crops=augmentation.render(moved.tiles, moved.local_plan, crops.local_crops_size),
            **shared,
        )


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
        crops: sizes and normalisation.
        seed: `train.seed`.
        global_batch_size: samples in a step over all processes.
        grid: rows and columns of patches in a global crop.
        mask_probability: share of global crops to mask.
        mask_ratio_min_max: range of masked shares of those.
        on_device: give a `TileBatch` and not a `MultiCropBatch`.
    """

    def __init__(
        self,
        crops: CropsSection,
        seed: int,
        global_batch_size: int,
        grid: tuple[int, int],
        mask_probability: float,
        mask_ratio_min_max: tuple[float, float],
        on_device: bool = False,
    ) -> None:
        self.crops = crops
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.grid = grid
        self.mask_probability = mask_probability
        self.mask_ratio_min_max = mask_ratio_min_max
        self._augmentation = None if on_device else MultiCropAugmentation(crops)

    def __call__(self, samples: Sequence[Sample]) -> MultiCropBatch | TileBatch | UnreadableBatch:
        """Make the batch of samples of one step."""
        tiles = [sample.tile for sample in samples if sample.tile is not None]
        if len(tiles) < len(samples):
            return UnreadableBatch([failure for sample in samples for failure in sample.bad], len(samples))
        part, crops = vars(self._step_part(samples)), self.crops
        large, small = [s.crops[:N_GLOBAL] for s in samples], [s.crops[N_GLOBAL:] for s in samples]
        if self._augmentation is None:
            return TileBatch(**part, tiles=pack_tiles(tiles), global_plan=make_plan(large), local_plan=make_plan(small))
        return MultiCropBatch(
            **part,
            global_crops=self._augmentation.render_batch(tiles, large, crops.global_crops_size),
            local_crops=self._augmentation.render_batch(tiles, small, crops.local_crops_size),
        )

    def _step_part(self, samples: Sequence[Sample]) -> StepPart:
        positions = [sample.position for sample in samples]
        step = positions[0] // self.global_batch_size
        masks = self._masks(step, positions)  # (2B, N)
        counts = masks.sum(1, keepdim=True).clamp(min=1)  # (2B, 1)
        return StepPart(
            masks=masks,
            mask_indices=masks.flatten().nonzero().flatten(),  # (M,)
            mask_weights=counts.float().reciprocal().expand_as(masks)[masks],  # (M,)
            step=step,
            positions=positions,
            paths=[sample.path for sample in samples],
            bad=[failure for sample in samples for failure in sample.bad],
        )

    def _masks(self, step: int, positions: list[int]) -> Tensor:
        size = self.global_batch_size
        rows = [crop * size + position % size for crop in range(N_GLOBAL) for position in positions]
        return global_batch_masks(
            self.seed, step, N_GLOBAL * size, self.grid, self.mask_probability, self.mask_ratio_min_max, rows
        )
