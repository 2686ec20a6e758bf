"""Each operation alone, rounded to eight bits, against torchvision's on uint8 tensors and PIL images: at most a level.

Exceptions: PIL turns hues in eight-bit HSV, which is coarse; the eight-bit forms of a resized crop clip bicubic's
overshoot after each of their two passes, so crops are compared where nothing is clipped.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from dinov2.data import image_ops
from dinov2.data.blur import gaussian_blur, gaussian_blur_batch
from dinov2.data.device_crop import crop_tiles


@pytest.fixture(params=["tile", "noise"])
def image(request: pytest.FixtureRequest, random_tile: Callable[..., Image.Image]) -> Tensor:
    """A tile as they are, or noise with grey, black and white areas; uint8 (3, 60, 80)."""
    if request.param == "tile":
        return TF.pil_to_tensor(random_tile(np.random.default_rng(0), 60, 80))
    noise = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    noise[:, :8] = noise[:1, :8]
    noise[:, 8:12], noise[:, 12:16] = 0, 255
    return noise


def _rounded(values: Tensor) -> Tensor:
    """Floats (3, H, W) in [0, 1] as levels."""
    return (values * 255).round().clamp(0, 255).long()


def _pixelwise(image: Tensor, operation: Callable[..., Tensor], *values: float) -> Tensor:
    return _rounded(operation((image.float() / 255).view(1, 1, 3, -1), *values).view(image.shape))


def _worst(ours: Tensor, theirs: Callable[..., Tensor | Image.Image], image: Tensor) -> tuple[int, int]:
    """The largest difference, in levels, from torchvision's form on a uint8 tensor and on a PIL image."""
    by_pil = theirs(TF.to_pil_image(image))
    assert isinstance(by_pil, Image.Image)
    return int((ours - theirs(image)).abs().max()), int((ours - TF.pil_to_tensor(by_pil)).abs().max())


# The ends of the ranges that DINOv2 draws from, and beyond.
@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("adjust_brightness", (0.0, 0.6, 0.83, 1.0, 1.21, 1.4, 3.0)),
        ("adjust_contrast", (0.0, 0.6, 0.83, 1.0, 1.21, 1.4, 3.0)),
        ("adjust_saturation", (0.0, 0.8, 0.93, 1.0, 1.11, 1.2)),
    ],
)
def test_factors(image: Tensor, name: str, factors: tuple[float, ...]) -> None:
    for factor in factors:
        ours = _pixelwise(image, getattr(image_ops, name), factor)
        worst = _worst(ours, lambda x, factor=factor: getattr(TF, name)(x, factor), image)
        assert max(worst) <= 1, factor


@pytest.mark.parametrize("shift", [-0.1, -0.03, 0.0, 0.04, 0.1, 0.5])
def test_hue(image: Tensor, shift: float) -> None:
    ours = _pixelwise(image, image_ops.adjust_hue, shift)
    assert int((ours - TF.adjust_hue(image, shift)).abs().max()) <= 1
    by_pil = TF.pil_to_tensor(TF.adjust_hue(TF.to_pil_image(image), shift))
    assert float((ours - by_pil).abs().float().mean()) <= 1.5  # 256 hues, saturations and values: see above


def test_grayscale_and_solarize(image: Tensor) -> None:
    gray = _pixelwise(image, image_ops.grayscale)
    assert max(_worst(gray, lambda x: TF.rgb_to_grayscale(x, num_output_channels=3), image)) <= 1
    assert _worst(_pixelwise(image, image_ops.solarize), lambda x: TF.solarize(x, 128), image) == (0, 0)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur(image: Tensor, sigma: float) -> None:
    square = image[:, :, :60].contiguous()
    floats = square.float() / 255
    batch = gaussian_blur_batch(floats.permute(1, 0, 2)[None], 9, torch.tensor([sigma]))[0].permute(1, 0, 2)
    for ours in (gaussian_blur(floats, 9, sigma), batch):
        assert max(_worst(_rounded(ours), lambda x: TF.gaussian_blur(x, [9, 9], [sigma, sigma]), square)) <= 1


@pytest.mark.parametrize(("box", "size"), [((5, 9, 51, 60), 24), ((0, 0, 60, 80), 32), ((20, 30, 16, 12), 48)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_crop_and_flip(image: Tensor, box: tuple[int, int, int, int], size: int, mirrored: bool) -> None:
    calm = (image * 0.6 + 50).to(torch.uint8)  # whose overshoot stays within the eight bits
    floats = (calm.float() / 255).permute(1, 0, 2)[None]
    flips = torch.tensor([[[False, mirrored]]])
    ours = crop_tiles(floats, torch.tensor([[box]]).float(), flips, size, max(box[2:]))[0].permute(1, 0, 2)

    def theirs(x: Tensor | Image.Image) -> Tensor | Image.Image:
        crop = TF.resized_crop(x, *box, [size, size], InterpolationMode.BICUBIC, True)
        return TF.horizontal_flip(crop) if mirrored else crop

    assert max(_worst(_rounded(ours), theirs, calm)) <= 1
