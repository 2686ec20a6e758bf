"""Each pixel operation against torchvision's float one, on one planar image and on a batch with a value for each."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from dinov2.data import image_ops

TOLERANCE = 1e-5
FACTORS = (0.0, 0.8, 1.2, 3.0)
JITTER = [
    (image_ops.adjust_brightness, TF.adjust_brightness, FACTORS),
    (image_ops.adjust_contrast, TF.adjust_contrast, FACTORS),
    (image_ops.adjust_saturation, TF.adjust_saturation, FACTORS),
    (image_ops.adjust_hue, TF.adjust_hue, (-0.5, -0.1, 0.0, 0.03, 0.1, 0.5)),
]


@pytest.fixture
def image() -> Tensor:
    """Random pixels with the awkward ones: black, white, grey, pure colours and ties between channels."""
    torch.manual_seed(0)
    x = torch.rand(3, 40, 50)
    x[:, :4] = x[:1, :4]
    x[1, 5:8] = x[0, 5:8]
    x[2, 9:12] = x[1, 9:12]
    x[0, 13:16] = x[2, 13:16]
    x[:, 17] = 0
    x[:, 18] = 1
    x[:, 19] = torch.eye(3)[:, torch.arange(50) % 3]
    return x


def _planar(image: Tensor) -> Tensor:
    """(3, H, W) in the layout of the operations, (1, 1, 3, H * W), as a copy."""
    return image.clone().view(1, 1, 3, -1)


@pytest.mark.parametrize(("ours", "theirs", "values"), JITTER)
def test_jitter_of_one_image(
    image: Tensor, ours: Callable[..., Tensor], theirs: Callable[..., Tensor], values: tuple[float, ...]
) -> None:
    for value in values:
        out = ours(_planar(image), value).view_as(image)
        assert torch.allclose(out, theirs(image, value), rtol=0, atol=TOLERANCE), value


@pytest.mark.parametrize(("ours", "theirs", "values"), JITTER)
def test_jitter_of_a_batch(
    image: Tensor, ours: Callable[..., Tensor], theirs: Callable[..., Tensor], values: tuple[float, ...]
) -> None:
    images = torch.stack([image.roll(number, 1) * (1 - 0.1 * number) for number in range(len(values))])
    factors = torch.tensor(values)[:, None, None, None]
    out = ours(images.permute(0, 2, 1, 3).contiguous(), factors).permute(0, 2, 1, 3)
    for mine, one, value in zip(out, images, values, strict=True):
        assert torch.allclose(mine, theirs(one, value), rtol=0, atol=TOLERANCE), value


def test_grayscale(image: Tensor) -> None:
    expected = TF.rgb_to_grayscale(image, num_output_channels=3)
    assert torch.allclose(image_ops.grayscale(_planar(image)).view_as(image), expected, rtol=0, atol=TOLERANCE)


def test_solarize_on_all_grey_levels() -> None:
    levels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    expected = TF.solarize(levels, 128)
    ours = image_ops.solarize(levels.float() / 255)
    assert torch.allclose(ours, expected.float() / 255, rtol=0, atol=TOLERANCE)
