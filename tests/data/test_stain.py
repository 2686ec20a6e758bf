"""Stain jitter against colour deconvolution written out in float64, one pixel at a time."""

import numpy as np
import torch

from dinov2.data.stain import jitter_stains

SPECTRA = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


def _reference(pixel: np.ndarray, gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
    spectra = SPECTRA / np.sqrt((SPECTRA**2).sum(1))[:, None]
    amounts = np.linalg.solve(spectra.T, -np.log10(np.maximum(pixel, 1 / 255)))
    return np.minimum(10 ** -(spectra.T @ (amounts * gain + bias)), 1)


def test_equals_deconvolution_of_each_pixel() -> None:
    rng = np.random.default_rng(0)
    images, gain, bias = rng.random((2, 4, 3, 5)), rng.uniform(0.7, 1.3, (2, 3)), rng.uniform(-0.1, 0.1, (2, 3))
    images[0, 0, :, 0] = 0
    images[0, 0, :, 1] = 1
    out = jitter_stains(*(torch.from_numpy(values).float() for values in (images, gain, bias)))
    for image in range(2):
        for row in range(4):
            for column in range(5):
                expected = _reference(images[image, row, :, column], gain[image], bias[image])
                np.testing.assert_allclose(out[image, row, :, column], expected, atol=1e-4)


def test_gain_one_and_bias_zero_change_nothing() -> None:
    images = torch.rand(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)).clamp(min=1 / 255)
    assert torch.allclose(jitter_stains(images, torch.ones(2, 3), torch.zeros(2, 3)), images, rtol=0, atol=1e-5)


def test_more_haematoxylin_darkens_a_nucleus_along_its_own_spectrum() -> None:
    spectrum = torch.tensor(SPECTRA[0] / np.linalg.norm(SPECTRA[0])).float()
    nucleus = (10 ** (-0.5 * spectrum)).view(1, 1, 3, 1)
    out = jitter_stains(nucleus, torch.tensor([[1.2, 1.0, 1.0]]), torch.zeros(1, 3))
    assert torch.allclose(out.view(3), 10 ** (-0.6 * spectrum), atol=1e-5)
    out = jitter_stains(nucleus, torch.tensor([[1.0, 1.2, 0.5]]), torch.zeros(1, 3))
    assert torch.allclose(out, nucleus, atol=1e-5)  # it holds no other stain
