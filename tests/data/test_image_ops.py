"""Each pixel operation against torchvision's float one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from dinov2.data import image_ops

TOLERANCE = 1e-5


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


@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (image_ops.adjust_brightness, TF.adjust_brightness, (0.0, 0.8, 1.2, 3.0)),
        (image_ops.adjust_contrast, TF.adjust_contrast, (0.0, 0.8, 1.2, 3.0)),
        (image_ops.adjust_saturation, TF.adjust_saturation, (0.0, 0.8, 1.2, 3.0)),
        (image_ops.adjust_hue, TF.adjust_hue, (-0.5, -0.1, 0.0, 0.03, 0.1, 0.5)),
    ],
)
def test_jitter(
    image: Tensor, ours: Callable[..., Tensor], theirs: Callable[..., Tensor], values: tuple[float, ...]
) -> None:
    for value in values:
        assert torch.allclose(ours(image.clone(), value), theirs(image, value), rtol=0, atol=TOLERANCE), value


def test_grayscale(image: Tensor) -> None:
    expected = TF.rgb_to_grayscale(image, num_output_channels=3)
    assert torch.allclose(image_ops.grayscale(image.clone()), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kernel_size", [3, 9, 23])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur(image: Tensor, kernel_size: int, sigma: float) -> None:
    expected = TF.gaussian_blur(image, [kernel_size, kernel_size], [sigma, sigma])
    assert torch.allclose(image_ops.gaussian_blur(image, kernel_size, sigma), expected, rtol=0, atol=TOLERANCE)


def test_solarize_on_all_grey_levels() -> None:
    levels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    expected = TF.solarize(levels, 128)
    ours = image_ops.solarize(levels.float() / 255)
    assert torch.allclose(ours, expected.float() / 255, rtol=0, atol=TOLERANCE)
