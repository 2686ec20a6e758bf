"""EinFFT as it is defined, with torch.fft."""

import torch
import torch.nn.functional as F
from torch import Tensor


def einfft_reference(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, shrinkage: float) -> Tensor:
    """Return y (B, L, D) for x (B, L, D), complex weights (2, nb, S, S) and biases (2, nb, S), all of one dtype."""
    blocks = x.unflatten(-1, (w1.shape[1], -1))  # (B, L, nb, S)
    spectrum = torch.fft.fft2(blocks, dim=(1, 2), norm="ortho")
    real, imag = _complex_linear(spectrum.real, spectrum.imag, w1, b1)
    real, imag = _complex_linear(F.relu(real), F.relu(imag), w2, b2)
    shrunk = torch.complex(F.softshrink(real, shrinkage), F.softshrink(imag, shrinkage))
    return torch.fft.ifft2(shrunk, dim=(1, 2), norm="ortho").real.flatten(2)


def _complex_linear(real: Tensor, imag: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Apply one complex layer per block to (B, L, nb, S) given as real and imaginary parts."""

    def times(x: Tensor, part: Tensor) -> Tensor:
        return (x.transpose(1, 2) @ part).transpose(1, 2)  # (B, L, nb, S) by (nb, S, S)

    return (
        times(real, weight[0]) - times(imag, weight[1]) + bias[0],
        times(real, weight[1]) + times(imag, weight[0]) + bias[1],
    )
