"""The augmentation against torchvision's transforms, applied with the same parameters."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF1
from torchvision.transforms.v2 import functional as TF

from dinov2.data.augmentations import MultiCropAugmentation
from dinov2.data.crop_params import CropParams, draw_crops
from dinov2.data.seeding import torch_seed
from dinov2.utils.schema import CropsSection, JitterSection, NormalizeSection

RAW = NormalizeSection(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture
def tile(random_tile: Callable[..., Image.Image]) -> Image.Image:
    return random_tile(np.random.default_rng(3), 200, 160)


def _torchvision_float(tile: Image.Image, p: CropParams, size: int, kernel: int) -> Tensor:
    """DINOv2's composition with torchvision's functions, in float after the crop."""
    x = TF.resized_crop(
        TF.pil_to_tensor(tile), p.top, p.left, p.height, p.width, [size, size], InterpolationMode.BICUBIC, True
    )
    x = TF.horizontal_flip(x) if p.flip else x
    x = TF.to_dtype(x, torch.float32, scale=True)
    for name, factor in p.jitter:
        x = getattr(TF, f"adjust_{name}")(x, factor)
    x = TF.rgb_to_grayscale(x, 3) if p.grayscale else x
    x = TF.gaussian_blur(x, [kernel, kernel], [p.blur_sigma, p.blur_sigma]) if p.blur_sigma is not None else x
    return TF.solarize(x, 128 / 255) if p.solarize else x


def _torchvision_pil(tile: Image.Image, p: CropParams, size: int, kernel: int) -> Tensor:
    """The same on PIL images, as DINOv2 runs it; rounds to 8 bits after each operation."""
    x = TF1.resized_crop(tile, p.top, p.left, p.height, p.width, [size, size], InterpolationMode.BICUBIC)
    x = TF1.hflip(x) if p.flip else x
    for name, factor in p.jitter:
        x = getattr(TF1, f"adjust_{name}")(x, factor)
    x = TF1.rgb_to_grayscale(x, 3) if p.grayscale else x
    x = TF1.gaussian_blur(x, [kernel, kernel], [p.blur_sigma, p.blur_sigma]) if p.blur_sigma is not None else x
    return TF1.to_tensor(TF1.solarize(x, 128) if p.solarize else x)


def _draws(crops: CropsSection, tile: Image.Image, seed: int) -> list[CropParams]:
    with torch_seed(seed):
        return draw_crops(crops, tile.height, tile.width)


@pytest.mark.parametrize("seed", range(4))
def test_equals_torchvisions_float_composition(tile: Image.Image, seed: int) -> None:
    crops = CropsSection(global_crops_size=96, local_crops_size=48, grayscale_p=0.2, solarize_p=(0.0, 0.2, 0.1))
    with torch_seed(seed):
        out = MultiCropAugmentation(crops)(tile)
    params = _draws(crops, tile, seed)
    assert len(params) == len(out["global_crops"]) + len(out["local_crops"])
    for crop, p in zip(out["global_crops"] + out["local_crops"], params, strict=True):
        expected = _torchvision_float(tile, p, crop.shape[-1], crops.blur_kernel)
        expected = TF.normalize(expected, list(crops.normalize.mean), list(crops.normalize.std))
        wrong = (crop - expected).abs() > 1e-4
        assert float(wrong.float().mean()) <= (1e-3 if p.solarize else 0.0)  # solarize may tip over at its threshold


def test_resizing_equals_pils_within_rounding(tile: Image.Image) -> None:
    crops = CropsSection(color_jitter=JitterSection(p=0.0), grayscale_p=0.0, blur_p=(0.0, 0.0, 0.0), normalize=RAW)
    with torch_seed(1):
        out = MultiCropAugmentation(crops)(tile)
    for crop, p in zip(out["global_crops"] + out["local_crops"], _draws(crops, tile, 1), strict=True):
        expected = _torchvision_pil(tile, p, crop.shape[-1], crops.blur_kernel)
        levels = ((crop - expected).abs() * 255).round()
        assert float(levels.max()) <= 2  # two passes, each rounded
        assert float((levels > 1).float().mean()) < 1e-3


@pytest.mark.parametrize(("hue", "levels"), [(0.0, 2.0), (0.1, 3.0)])  # PIL truncates, and keeps hue in 8 bits
def test_stays_close_to_pil_with_everything(tile: Image.Image, hue: float, levels: float) -> None:
    jitter = JitterSection(hue=hue, p=1.0)
    crops = CropsSection(global_crops_size=96, local_crops_size=48, normalize=RAW, color_jitter=jitter)
    for seed in range(3):
        with torch_seed(seed):
            out = MultiCropAugmentation(crops)(tile)
        for crop, p in zip(out["global_crops"] + out["local_crops"], _draws(crops, tile, seed), strict=True):
            difference = (crop - _torchvision_pil(tile, p, crop.shape[-1], crops.blur_kernel)).abs()
            assert float(difference.mean()) < levels / 255


def test_shapes_and_types(tile: Image.Image) -> None:
    crops = CropsSection(global_crops_size=64, local_crops_size=32, local_crops_number=5)
    out = MultiCropAugmentation(crops)(tile)
    assert [tuple(x.shape) for x in out["global_crops"]] == [(3, 64, 64)] * 2
    assert [tuple(x.shape) for x in out["local_crops"]] == [(3, 32, 32)] * 5
    assert all(x.dtype == torch.float32 and x.is_contiguous() for x in out["global_crops"] + out["local_crops"])
    assert MultiCropAugmentation(replace(crops, local_crops_number=0))(tile)["local_crops"] == []


def test_depends_on_the_seed_only(tile: Image.Image) -> None:
    augmentation = MultiCropAugmentation(CropsSection(global_crops_size=32, local_crops_size=16))
    crops = []
    for seed in (0, 1, 0):
        with torch_seed(seed):
            crops.append(torch.stack(augmentation(tile)["global_crops"]))
    assert torch.equal(crops[0], crops[2])
    assert not torch.equal(crops[0], crops[1])


def test_leaves_a_tensor_tile_alone(tile: Image.Image) -> None:
    tensor = TF.pil_to_tensor(tile)
    before = tensor.clone()
    MultiCropAugmentation(CropsSection(global_crops_size=32, local_crops_size=16))(tensor)
    assert torch.equal(tensor, before)


def test_one_pixel_tile() -> None:
    out = MultiCropAugmentation(CropsSection(global_crops_size=32, local_crops_size=16))(
        Image.new("RGB", (1, 1), (10, 20, 30))
    )
    assert all(torch.isfinite(x).all() for x in out["global_crops"] + out["local_crops"])
