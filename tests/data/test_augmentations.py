"""The augmentation against torchvision's transforms, applied with the same parameters."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF1
from torchvision.transforms.v2 import functional as TF

from dinov2.data import device_augmentation
from dinov2.data.augmentations import MultiCropAugmentation
from dinov2.data.crop_params import CropParams, draw_crops
from dinov2.data.device_augmentation import DeviceAugmentation
from dinov2.data.device_plan import make_plan
from dinov2.data.seeding import torch_seed
from dinov2.data.tiles import pack_tiles
from dinov2.utils.schema import CropsSection, HedJitterSection, JitterSection, NormalizeSection

RAW = NormalizeSection(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CPU = torch.device("cpu")
Render = Callable[[CropsSection, Tensor, list[CropParams]], list[Tensor]]


@pytest.fixture
def tile(random_tile: Callable[..., Image.Image]) -> Image.Image:
    return random_tile(np.random.default_rng(3), 200, 160)


def _worker(crops: CropsSection, tile: Tensor, params: list[CropParams]) -> list[Tensor]:
    """The crops of one tile in the worker's form."""
    augmentation = MultiCropAugmentation(crops)
    large = augmentation.render_batch([tile], [params[:2]], crops.global_crops_size)
    return [*large, *augmentation.render_batch([tile], [params[2:]], crops.local_crops_size)]


def _worker_without_compiler(crops: CropsSection, tile: Tensor, params: list[CropParams]) -> list[Tensor]:
    augmentation = MultiCropAugmentation(crops, use_native=False)
    large = augmentation.render_batch([tile], [params[:2]], crops.global_crops_size)
    return [*large, *augmentation.render_batch([tile], [params[2:]], crops.local_crops_size)]


def _device(crops: CropsSection, tile: Tensor, params: list[CropParams]) -> list[Tensor]:
    """The same in the device's form."""
    augmentation, packed = DeviceAugmentation(crops, CPU), pack_tiles([tile])
    large = augmentation.render(packed, make_plan([params[:2]]), crops.global_crops_size)
    return [*large, *augmentation.render(packed, make_plan([params[2:]]), crops.local_crops_size)]


def _torchvision_float(tile: Tensor, p: CropParams, size: int, kernel: int) -> Tensor:
    """DINOv2's composition with torchvision's functions, in float after the crop, or from the crop on for floats."""
    x = TF.resized_crop(tile, p.top, p.left, p.height, p.width, [size, size], InterpolationMode.BICUBIC, True)
    x = TF.to_dtype(x, torch.float32, scale=True).clamp(0, 1)
    x = TF.horizontal_flip(x) if p.flip else x
    x = TF.vertical_flip(x) if p.vertical_flip else x
    x = TF.rotate(x, 90.0 * p.quarter_turns)
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
@pytest.mark.parametrize(
    ("render", "eight_bits"), [(_worker, True), (_worker_without_compiler, True), (_device, False)]
)
def test_equals_torchvisions_composition(tile: Image.Image, seed: int, render: Render, eight_bits: bool) -> None:
    """The worker resizes in eight bits, the device in float, each as torchvision does."""
    crops = CropsSection(
        global_crops_size=96, local_crops_size=48, solarize_p=(0.0, 0.2, 0.1), vertical_flip_p=0.5, rotate90_p=0.75
    )
    params, pixels = _draws(crops, tile, seed), TF.pil_to_tensor(tile)
    source = pixels if eight_bits else pixels.float() / 255
    out = render(crops, pixels, params)
    assert len(params) == len(out)
    for crop, p in zip(out, params, strict=True):
        expected = _torchvision_float(source, p, crop.shape[-1], crops.blur_kernel)
        expected = TF.normalize(expected, list(crops.normalize.mean), list(crops.normalize.std))
        wrong = (crop - expected).abs() > 1e-4
        assert float(wrong.float().mean()) <= (1e-3 if p.solarize else 0.0)  # solarize may tip over at its threshold


def test_both_forms_agree_within_eight_bits(tile: Image.Image) -> None:
    """The worker rounds after each pass of resizing; jitter can stretch that. It also clips: not for these tiles."""
    hed = HedJitterSection(p=0.5)
    crops = CropsSection(local_crops_size=64, normalize=RAW, vertical_flip_p=0.5, rotate90_p=0.75, hed_jitter=hed)
    pixels = (TF.pil_to_tensor(tile) * 0.6 + 50).to(torch.uint8)
    for seed in range(3):
        params = _draws(crops, tile, seed)
        for one, other in zip(_worker(crops, pixels, params), _device(crops, pixels, params), strict=True):
            levels = (one - other).abs() * 255
            assert float(levels.max()) <= 4
            assert float(levels.mean()) <= 0.5


@pytest.mark.parametrize("render", [_worker, _device])
@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize(("flip", "vertical"), [(False, False), (True, False), (False, True), (True, True)])
def test_turns_come_after_flips(render: Render, turns: int, flip: bool, vertical: bool) -> None:
    crops = CropsSection(global_crops_size=3, local_crops_number=0, normalize=RAW)
    tile = torch.arange(0, 27 * 9, 9, dtype=torch.uint8).view(3, 3, 3)
    params = CropParams(0, 0, 3, 3, flip, (), False, None, False, vertical, turns)
    expected = tile.flip(-1) if flip else tile
    expected = expected.flip(-2) if vertical else expected
    expected = expected.rot90(turns, (-2, -1)).float() / 255
    for crop in render(crops, tile, [params, params]):
        assert torch.allclose(crop, expected, atol=1e-6)


def test_resizing_equals_pils_within_rounding(tile: Image.Image) -> None:
    crops = CropsSection(color_jitter=JitterSection(p=0.0), grayscale_p=0.0, blur_p=(0.0, 0.0, 0.0), normalize=RAW)
    params = _draws(crops, tile, 1)
    for crop, p in zip(_worker(crops, TF.pil_to_tensor(tile), params), params, strict=True):
        expected = _torchvision_pil(tile, p, crop.shape[-1], crops.blur_kernel)
        levels = ((crop - expected).abs() * 255).round()
        assert float(levels.max()) <= 2  # two passes, each rounded
        assert float((levels > 1).float().mean()) < 1e-3


@pytest.mark.parametrize(("hue", "levels"), [(0.0, 2.0), (0.1, 3.0)])  # PIL truncates, and keeps hue in 8 bits
def test_stays_close_to_pil_with_everything(tile: Image.Image, hue: float, levels: float) -> None:
    jitter = JitterSection(hue=hue, p=1.0)
    crops = CropsSection(global_crops_size=96, local_crops_size=48, normalize=RAW, color_jitter=jitter)
    for seed in range(3):
        params = _draws(crops, tile, seed)
        for crop, p in zip(_worker(crops, TF.pil_to_tensor(tile), params), params, strict=True):
            difference = (crop - _torchvision_pil(tile, p, crop.shape[-1], crops.blur_kernel)).abs()
            assert float(difference.mean()) < levels / 255


@pytest.mark.parametrize("render", [_worker, _device])
def test_shapes_and_types(tile: Image.Image, render: Render) -> None:
    crops = CropsSection(global_crops_size=64, local_crops_size=32, local_crops_number=5)
    out = render(crops, TF.pil_to_tensor(tile), _draws(crops, tile, 0))
    assert [tuple(x.shape) for x in out] == [(3, 64, 64)] * 2 + [(3, 32, 32)] * 5
    assert all(x.dtype == torch.float32 and x.is_contiguous() for x in out)
    without = replace(crops, local_crops_number=0)
    assert len(render(without, TF.pil_to_tensor(tile), _draws(without, tile, 0))) == 2


@pytest.mark.parametrize("render", [_worker, _device])
def test_leaves_the_tile_alone(tile: Image.Image, render: Render) -> None:
    crops, tensor = CropsSection(global_crops_size=32, local_crops_size=16), TF.pil_to_tensor(tile)
    before = tensor.clone()
    render(crops, tensor, _draws(crops, tile, 0))
    assert torch.equal(tensor, before)


@pytest.mark.parametrize("render", [_worker, _device])
def test_one_pixel_tile(render: Render) -> None:
    crops = CropsSection(global_crops_size=32, local_crops_size=16, hed_jitter=HedJitterSection(p=1.0))
    tile = Image.new("RGB", (1, 1), (10, 20, 30))
    out = render(crops, TF.pil_to_tensor(tile), _draws(crops, tile, 0))
    for crop in out:
        assert torch.isfinite(crop).all()
        assert torch.allclose(crop, crop[:, :1, :1].expand_as(crop), atol=1e-4)  # one colour


@pytest.mark.parametrize("largest_group", [device_augmentation.LARGEST_GROUP, 1])
def test_tiles_of_several_sizes_are_rendered_as_each_alone(
    random_tile: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch, largest_group: int
) -> None:
    monkeypatch.setattr(device_augmentation, "LARGEST_GROUP", largest_group)
    crops = CropsSection(global_crops_size=48, local_crops_size=24, local_crops_number=3)
    rng = np.random.default_rng(5)
    tiles = [random_tile(rng, *size) for size in ((64, 64), (1, 1), (80, 50), (64, 64), (9, 120))]
    params = [_draws(crops, tile, number) for number, tile in enumerate(tiles)]
    pixels = [TF.pil_to_tensor(tile) for tile in tiles]
    augmentation = DeviceAugmentation(crops, CPU)
    for part, size in ((slice(0, 2), 48), (slice(2, None), 24)):
        together = augmentation.render(pack_tiles(pixels), make_plan([p[part] for p in params]), size)
        for number, (tile, p) in enumerate(zip(pixels, params, strict=True)):
            alone = augmentation.render(pack_tiles([tile]), make_plan([p[part]]), size)
            assert torch.allclose(together[number :: len(tiles)], alone, atol=1e-5)


def test_reduced_precision_of_products_does_not_reach_the_pixels(
    tile: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops, pixels = CropsSection(global_crops_size=32, local_crops_size=16), TF.pil_to_tensor(tile)
    seen = []
    crop = device_augmentation.crop_tiles

    def record(*args: Any) -> torch.Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return crop(*args)

    monkeypatch.setattr(device_augmentation, "crop_tiles", record)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        _device(crops, pixels, _draws(crops, tile, 0))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"highest"}


def test_autocast_does_not_reach_the_pixels(tile: Image.Image) -> None:
    crops, pixels = CropsSection(global_crops_size=32, local_crops_size=16), TF.pil_to_tensor(tile)
    params = _draws(crops, tile, 0)
    plain = _device(crops, pixels, params)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(plain, _device(crops, pixels, params), strict=True))
