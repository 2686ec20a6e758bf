"""Both forms of the blur against torchvision's."""

import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from dinov2.data.blur import gaussian_blur, gaussian_blur_batch

SIGMAS = (0.1, 0.7, 2.0)


@pytest.mark.parametrize("kernel_size", [1, 3, 9, 23])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_one_image(kernel_size: int, sigma: float) -> None:
    image = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))
    expected = TF.gaussian_blur(image, [kernel_size, kernel_size], [sigma, sigma])
    assert torch.allclose(gaussian_blur(image, kernel_size, sigma), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "kernel_size"), [(40, 9), (5, 9), (16, 23), (12, 1)])
def test_a_batch_with_a_sigma_for_each(size: int, kernel_size: int) -> None:
    images = torch.rand(len(SIGMAS), 3, size, size, generator=torch.Generator().manual_seed(0))
    out = gaussian_blur_batch(images.permute(0, 2, 1, 3), kernel_size, torch.tensor(SIGMAS)).permute(0, 2, 1, 3)
    for mine, image, sigma in zip(out, images, SIGMAS, strict=True):
        expected = TF.gaussian_blur(image, [kernel_size, kernel_size], [sigma, sigma])
        assert torch.allclose(mine, expected, rtol=0, atol=1e-5)
