"""Layout of a batch."""

from itertools import pairwise

import pytest
import torch

from dinov2.data.collate import MultiCropBatch, MultiCropCollator, UnreadableBatch
from dinov2.data.masking import global_batch_masks
from dinov2.data.samples import Sample

GRID = (4, 6)


def _sample(position: int, n_local: int = 3) -> Sample:
    """Crops filled with position + crop / 100, so that rows can be recognised."""
    crops = [torch.full((3, 8, 8), position + number / 100) for number in range(2)]
    local = [torch.full((3, 4, 4), position + number / 100) for number in range(n_local)]
    return Sample(position, f"{position}.png", {"global_crops": crops, "local_crops": local}, [])


def _collator(global_batch_size: int = 6) -> MultiCropCollator:
    return MultiCropCollator(5, global_batch_size, GRID, 0.5, (0.1, 0.5))


def _collate(collator: MultiCropCollator, positions: list[int], n_local: int = 3) -> MultiCropBatch:
    batch = collator([_sample(position, n_local) for position in positions])
    assert isinstance(batch, MultiCropBatch)
    return batch


def test_crops_are_crop_major() -> None:
    batch = _collate(_collator(), [12, 13])
    assert torch.allclose(batch.global_crops[:, 0, 0, 0], torch.tensor([12, 13, 12.01, 13.01]))
    assert torch.allclose(batch.local_crops[:, 0, 0, 0], torch.tensor([12, 13, 12.01, 13.01, 12.02, 13.02]))
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


def test_without_local_crops() -> None:
    assert _collate(_collator(), [0, 1], n_local=0).local_crops.shape[0] == 0


def test_bad_tiles_are_passed_on() -> None:
    one, other = _sample(0), _sample(1)
    other.bad = [("x.png", "cut off")]
    batch = _collator()([one, other])
    assert isinstance(batch, MultiCropBatch)
    assert batch.bad == [("x.png", "cut off")]
    other.crops = None
    failed = _collator()([one, other])
    assert failed == UnreadableBatch([("x.png", "cut off")], 2)


def test_to_moves_the_tensors_only() -> None:
    batch = _collate(_collator(), [0, 1])
    moved = batch.to("meta", non_blocking=True)
    for name in ("global_crops", "local_crops", "masks", "mask_indices", "mask_weights"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(batch, name).device.type == "cpu"
    assert (moved.positions, moved.paths) == (batch.positions, batch.paths)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pin_memory() -> None:
    assert _collate(_collator(), [0, 1]).pin_memory().global_crops.is_pinned()
