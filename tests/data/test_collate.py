"""Layout of a batch."""

from itertools import pairwise

import pytest
import torch

from dinov2.data.collate import MultiCropBatch, MultiCropCollator, TileBatch, UnreadableBatch
from dinov2.data.crop_params import CropParams
from dinov2.data.device_augmentation import DeviceAugmentation
from dinov2.data.masking import global_batch_masks
from dinov2.data.samples import Sample
from dinov2.utils.schema import CropsSection, NormalizeSection

BATCH_TENSORS = ("global_crops", "local_crops", "masks", "mask_indices", "mask_weights")
GRID = (4, 6)
RAW = NormalizeSection(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))  # crops in grey levels
CROPS = CropsSection(global_crops_size=8, local_crops_size=4, normalize=RAW)


def _sample(position: int, n_local: int = 3) -> Sample:
    """A tile whose columns have the values 100 + position, and 10 less each; crop c shows column c alone."""
    tile = (100 + position - 10 * torch.arange(8)).to(torch.uint8).expand(3, 5, 8).contiguous()
    crops = [CropParams(0, number, 5, 1, False, (), False, None, False) for number in range(2 + n_local)]
    return Sample(position, f"{position}.png", tile, crops, [])


def _collator(global_batch_size: int = 6, on_device: bool = False) -> MultiCropCollator:
    return MultiCropCollator(CROPS, 5, global_batch_size, GRID, 0.5, (0.1, 0.5), on_device)


def _collate(collator: MultiCropCollator, positions: list[int], n_local: int = 3) -> MultiCropBatch:
    batch = collator([_sample(position, n_local) for position in positions])
    if isinstance(batch, TileBatch):
        batch = batch.render(DeviceAugmentation(CROPS, torch.device("cpu")))
    assert isinstance(batch, MultiCropBatch)
    return batch


@pytest.mark.parametrize("on_device", [False, True])
def test_crops_are_crop_major(on_device: bool) -> None:
    batch = _collate(_collator(on_device=on_device), [12, 13])
    assert batch.global_crops.shape == (4, 3, 8, 8)
    assert batch.local_crops.shape == (6, 3, 4, 4)
    large, small = torch.tensor([112.0, 113, 102, 103]), torch.tensor([92.0, 93, 82, 83, 72, 73])
    assert torch.allclose(batch.global_crops, large[:, None, None, None].expand(4, 3, 8, 8), atol=1e-3)
    assert torch.allclose(batch.local_crops, small[:, None, None, None].expand(6, 3, 4, 4), atol=1e-3)
    assert (batch.step, batch.positions, batch.paths) == (2, [12, 13], ["12.png", "13.png"])


def test_masks_are_the_rank_rows_of_the_global_batch() -> None:
    whole = global_batch_masks(5, 2, 12, GRID, 0.5, (0.1, 0.5))
    batch = _collate(_collator(), [14, 15])  # places 2 and 3 of step 2
    assert torch.equal(batch.masks, whole[[2, 3, 8, 9]])


def test_indices_and_weights_describe_the_masks() -> None:
    batch = _collate(_collator(), list(range(6)))
    assert len(batch.mask_indices) == len(batch.mask_weights) == int(batch.masks.sum()) > 0
    assert all(one < other for one, other in pairwise(batch.mask_indices.tolist()))
    rebuilt = torch.zeros(batch.masks.numel(), dtype=torch.bool)
    rebuilt[batch.mask_indices] = True
    assert torch.equal(rebuilt.view_as(batch.masks), batch.masks)
    image = batch.mask_indices // batch.masks.shape[1]
    sums = torch.zeros(12).index_add_(0, image, batch.mask_weights)
    assert torch.allclose(sums, batch.masks.any(1).float())  # each masked image weighs 1
    assert (batch.mask_indices.dtype, batch.mask_weights.dtype) == (torch.int64, torch.float32)


@pytest.mark.parametrize("on_device", [False, True])
def test_without_local_crops(on_device: bool) -> None:
    assert _collate(_collator(on_device=on_device), [0, 1], n_local=0).local_crops.shape[0] == 0


def test_a_tile_batch_moves_with_everything_the_device_needs() -> None:
    batch = _collator(on_device=True)([_sample(0), _sample(1)])
    assert isinstance(batch, TileBatch)
    moved = batch.to("meta")
    tensors = [moved.masks, moved.mask_indices, moved.mask_weights, moved.tiles.pixels]
    for plan in (moved.global_plan, moved.local_plan):
        tensors += [plan.boxes, plan.flips, plan.rows, plan.values]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.paths == batch.paths


def test_everything_but_the_crops_is_the_same_on_the_device() -> None:
    here, there = _collate(_collator(), [0, 3, 5]), _collate(_collator(on_device=True), [0, 3, 5])
    for name in BATCH_TENSORS:
        assert torch.allclose(getattr(here, name).float(), getattr(there, name).float(), atol=1e-3)
    assert (here.step, here.positions, here.paths) == (there.step, there.positions, there.paths)


def test_bad_tiles_are_passed_on() -> None:
    one, other = _sample(0), _sample(1)
    other.bad = [("x.png", "cut off")]
    batch = _collator()([one, other])
    assert isinstance(batch, MultiCropBatch)
    assert batch.bad == [("x.png", "cut off")]
    other.tile = None
    failed = _collator()([one, other])
    assert failed == UnreadableBatch([("x.png", "cut off")], 2)


def test_to_moves_the_tensors_only() -> None:
    batch = _collate(_collator(), [0, 1])
    moved = batch.to("meta", non_blocking=True)
    for name in BATCH_TENSORS:
        assert getattr(moved, name).device.type == "meta"
        assert getattr(batch, name).device.type == "cpu"
    assert (moved.positions, moved.paths) == (batch.positions, batch.paths)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pin_memory() -> None:
    assert _collate(_collator(), [0, 1]).pin_memory().global_crops.is_pinned()
