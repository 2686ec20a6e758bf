"""EinFFT against explicit discrete Fourier matrices and complex arithmetic."""

import numpy as np
import pytest
import torch

from dinov2.layers.einfft import EinFFT

BLOCKS = 4


def dft(n):
    """The unitary Fourier matrix."""
    grid = np.outer(np.arange(n), np.arange(n))
    return np.exp(-2j * np.pi * grid / n) / np.sqrt(n)


def shrink(x, by):
    return np.sign(x) * np.maximum(np.abs(x) - by, 0)


def slow_einfft(x, layer):
    """The definition for x (B, L, D) in complex128."""
    batch, length, dim = x.shape
    size = dim // BLOCKS
    p = {name: t.detach().numpy().astype(np.float64) for name, t in layer.named_parameters()}
    over_tokens, over_blocks = dft(length), dft(BLOCKS)
    out = np.zeros_like(x)
    for b in range(batch):
        spectrum = np.einsum("st,uk,tki->sui", over_tokens, over_blocks, x[b].reshape(length, BLOCKS, size))
        hidden = np.zeros_like(spectrum)
        result = np.zeros_like(spectrum)
        for k in range(BLOCKS):
            w1 = p["complex_weight_1"][0, k] + 1j * p["complex_weight_1"][1, k]
            b1 = p["complex_bias_1"][0, k] + 1j * p["complex_bias_1"][1, k]
            first = spectrum[:, k] @ w1 + b1
            hidden[:, k] = np.maximum(first.real, 0) + 1j * np.maximum(first.imag, 0)
            w2 = p["complex_weight_2"][0, k] + 1j * p["complex_weight_2"][1, k]
            b2 = p["complex_bias_2"][0, k] + 1j * p["complex_bias_2"][1, k]
            second = hidden[:, k] @ w2 + b2
            result[:, k] = shrink(second.real, 0.01) + 1j * shrink(second.imag, 0.01)
        back = np.einsum("st,uk,tki->sui", over_tokens.conj(), over_blocks.conj(), result)
        out[b] = back.real.reshape(length, dim)
    return out


def make(dim, scale):
    torch.manual_seed(0)
    return EinFFT(dim, init_scale=scale), torch.randn(2, 9, dim, dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.02, 0.3])  # small: softshrink bites; large: it hardly does
def test_it_is_the_definition(scale):
    layer, x = make(24, scale)
    layer = layer.double()
    expected = slow_einfft(x.numpy(), layer)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_autocast_and_low_precision_inputs_are_computed_in_float32():
    layer, x = make(24, 0.3)
    low = x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(low)
        inside = layer(x.float())
    assert y.dtype == torch.bfloat16
    assert inside.dtype == torch.float32
    np.testing.assert_allclose(inside.detach().numpy(), slow_einfft(x.numpy(), layer), rtol=1e-4, atol=1e-5)
    expected = slow_einfft(low.double().numpy(), layer)
    assert np.abs(y.detach().double().numpy() - expected).max() <= 2**-8 * np.abs(expected).max()


def test_gradients():
    torch.manual_seed(0)
    layer = EinFFT(8, init_scale=0.5).double()
    x = torch.randn(1, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    layer(x).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in layer.parameters())


def test_blocks_must_divide_the_width():
    with pytest.raises(ValueError, match="4 blocks do not divide the width 30"):
        EinFFT(30)
