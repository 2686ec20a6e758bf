"""The whole loader: determinism over workers, ranks and restarts, and damaged tiles."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from dinov2.data.collate import MultiCropBatch
from dinov2.data.datasets import Folder
from dinov2.data.errors import TooManyBadTilesError
from dinov2.data.loaders import MultiCropLoader, augments_on_device, make_loader
from dinov2.utils.schema import CropsSection, IbotSection, JpegSection

BATCH_TENSORS = ("global_crops", "local_crops", "masks", "mask_indices", "mask_weights")
Make = Callable[..., MultiCropLoader]


@pytest.fixture
def make(tiles: Path, small_crops: CropsSection) -> Make:
    """`make(**changes)`: a loader over 20 tiles with global batches of 6."""

    def build(**changes: object) -> MultiCropLoader:
        arguments = {"patch_size": 8, "global_batch_size": 6, "seed": 11, **changes}
        return make_loader(Folder(str(tiles)), small_crops, IbotSection(), **arguments)  # type: ignore[arg-type]

    return build


def _take(loader: MultiCropLoader, count: int) -> list[MultiCropBatch]:
    return list(islice(loader, count))


def _same(one: MultiCropBatch, other: MultiCropBatch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in BATCH_TENSORS) and (
        (one.step, one.positions, one.paths, one.bad) == (other.step, other.positions, other.paths, other.bad)
    )


@pytest.fixture
def two_threads() -> Iterator[None]:
    """More than one torch thread in the main process, unlike in workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("augment", ["worker", "device"])
def test_batches_do_not_depend_on_the_workers(make: Make, augment: str) -> None:
    reference = _take(make(augment=augment), 3)
    for workers in (1, 2):
        batches = _take(make(num_workers=workers, augment=augment), 3)
        assert all(_same(a, b) for a, b in zip(reference, batches, strict=True))


def test_the_device_makes_the_same_crops(make: Make, small_crops: CropsSection) -> None:
    std = torch.tensor(small_crops.normalize.std)[:, None, None]
    for here, there in zip(_take(make(augment="worker"), 3), _take(make(augment="device"), 3), strict=True):
        assert torch.equal(here.masks, there.masks)
        assert here.paths == there.paths
        for name in ("global_crops", "local_crops"):
            levels = ((getattr(here, name) - getattr(there, name)) * std).abs() * 255
            assert float(levels.max()) <= 5
            assert float(levels.mean()) <= 0.5


def test_auto_leaves_the_crops_to_the_workers_of_a_cpu() -> None:
    assert [augments_on_device("auto", torch.device(name)) for name in ("cpu", "cuda")] == [False, True]
    for device in (torch.device("cpu"), torch.device("cuda")):
        assert augments_on_device("device", device)
        assert not augments_on_device("worker", device)


def test_a_recompressed_tile_differs_a_little(make: Make, small_crops: CropsSection) -> None:
    plain = _take(make(), 2)
    small_crops.jpeg = JpegSection(quality=(80, 90), p=1.0)
    again = _take(make(), 2)
    for one, other in zip(plain, again, strict=True):
        difference = (one.global_crops - other.global_crops).abs().mean()
        assert 0.01 < float(difference) < 0.5
    assert all(_same(a, b) for a, b in zip(again, _take(make(num_workers=1), 2), strict=True))


def test_global_rng_is_not_touched(make: Make) -> None:
    before = torch.get_rng_state()
    _take(make(), 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_restart_continues_exactly(make: Make, workers: int) -> None:
    whole = _take(make(), 7)
    resumed = _take(make(start_step=4, num_workers=workers), 3)
    assert [batch.step for batch in resumed] == [4, 5, 6]
    assert all(_same(a, b) for a, b in zip(whole[4:], resumed, strict=True))


def test_ranks_share_the_global_batch(make: Make) -> None:
    whole = _take(make(), 3)
    parts = [_take(make(rank=rank, world_size=3), 3) for rank in range(3)]
    for step, batch in enumerate(whole):
        pieces = [part[step] for part in parts]
        for name, n_crops in (("global_crops", 2), ("local_crops", 3), ("masks", 2)):
            stacked = torch.cat([getattr(p, name).unflatten(0, (n_crops, 2)) for p in pieces], dim=1).flatten(0, 1)
            assert torch.equal(stacked, getattr(batch, name)), name
        assert [path for p in pieces for path in p.paths] == batch.paths


def test_an_epoch_holds_every_tile_once(make: Make) -> None:
    paths = [path for batch in _take(make(global_batch_size=5), 8) for path in batch.paths]
    assert len(set(paths[:20])) == len(set(paths[20:])) == 20
    assert paths[:20] != paths[20:]


def test_seed_changes_everything(make: Make) -> None:
    (one,), (other,) = _take(make(), 1), _take(make(seed=12), 1)
    assert one.paths != other.paths
    assert not torch.equal(one.masks, other.masks)


def test_shapes(make: Make) -> None:
    (batch,) = _take(make(), 1)
    assert batch.global_crops.shape == (12, 3, 32, 32)
    assert batch.local_crops.shape == (18, 3, 16, 16)
    assert batch.masks.shape == (12, 16)


def test_truncated_png_is_named_counted_and_replaced(make: Make, tiles: Path, truncate: Callable[[Path], None]) -> None:
    clean = _take(make(), 4)
    victim = tiles / "tile_007.png"
    truncate(victim)
    for workers in (0, 2):
        loader = make(num_workers=workers)
        batches = _take(loader, 4)
        assert list(loader.monitor.paths) == [str(victim)]
        for before, after in zip(clean, batches, strict=True):
            hit = [place for place, path in enumerate(before.paths) if path == str(victim)]
            assert {path for path, _ in after.bad} == ({str(victim)} if hit else set())
            assert str(victim) not in after.paths
            others = [place for place in range(6) if place not in hit]
            assert torch.equal(after.global_crops[others], before.global_crops[others])
            assert torch.equal(after.masks, before.masks)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_tiles_stop_the_run(
    make: Make, tiles: Path, truncate: Callable[[Path], None], workers: int
) -> None:
    for number in range(4):
        truncate(tiles / f"tile_{number:03d}.png")
    with pytest.raises(TooManyBadTilesError, match=r"data\.max_bad_fraction"):
        _take(make(num_workers=workers), 20)
    assert len(_take(make(num_workers=workers, max_bad_fraction=0.2), 5)) == 5


@pytest.mark.parametrize("fraction", [0.01, 1.0])
def test_nothing_readable_is_an_error_and_not_a_loop(
    make: Make, tiles: Path, truncate: Callable[[Path], None], fraction: float
) -> None:
    for path in tiles.iterdir():
        truncate(path)
    with pytest.raises(TooManyBadTilesError):
        _take(make(max_bad_fraction=fraction), 1)


def test_crop_must_be_a_multiple_of_the_patch(make: Make) -> None:
    with pytest.raises(ValueError, match=r"crops\.global_crops_size 32 is not a multiple of patch 14"):
        make(patch_size=14)
