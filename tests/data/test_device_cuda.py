"""The augmentation on a GPU: the same crops as on a CPU, and no moment at which the host waits."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from dinov2.data.collate import MultiCropCollator, TileBatch
from dinov2.data.datasets import Folder
from dinov2.data.device_augmentation import DeviceAugmentation
from dinov2.data.loaders import make_loader
from dinov2.data.samples import SampleStream
from dinov2.utils.schema import CropsSection, HedJitterSection, IbotSection

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CUDA = torch.device("cuda")
EVERYTHING = CropsSection(
    global_crops_size=64,
    local_crops_size=32,
    vertical_flip_p=0.5,
    rotate90_p=0.75,
    hed_jitter=HedJitterSection(p=0.5),
    solarize_p=(0.2, 0.2, 0.2),
)


def _batch(tiles: Path) -> TileBatch:
    stream = SampleStream(Folder(str(tiles)), EVERYTHING, 0)
    batch = MultiCropCollator(EVERYTHING, 0, 8, (4, 4), 0.5, (0.1, 0.5), on_device=True)([stream[i] for i in range(8)])
    assert isinstance(batch, TileBatch)
    return batch


def test_equals_the_cpu(tiles: Path) -> None:
    batch = _batch(tiles)
    here, there = (batch.render(DeviceAugmentation(EVERYTHING, torch.device(name))) for name in ("cpu", "cuda"))
    for name in ("global_crops", "local_crops"):
        wrong = (getattr(here, name) - getattr(there, name).cpu()).abs() > 1e-3
        assert float(wrong.float().mean()) < 1e-3  # solarize may tip over at its threshold


def test_the_host_never_waits(tiles: Path) -> None:
    augmentation, batch = DeviceAugmentation(EVERYTHING, CUDA), _batch(tiles).pin_memory()
    batch.render(augmentation)  # fills what is kept on the device
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch.render(augmentation)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_gives_batches_on_the_device(tiles: Path, workers: int) -> None:
    loader = make_loader(
        *(Folder(str(tiles)), EVERYTHING, IbotSection()),
        patch_size=16,
        global_batch_size=6,
        seed=0,
        num_workers=workers,
        pin_memory=True,
        device=CUDA,
    )
    for batch in islice(loader, 2):
        assert batch.global_crops.device.type == batch.masks.device.type == "cuda"
        assert batch.local_crops.shape == (48, 3, 32, 32)
