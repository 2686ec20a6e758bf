"""EinFFT, the channel mixer of SiMBA (arXiv 2403.15360): a complex two-layer network in the frequency domain."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EinFFT(nn.Module):
    """Mix (B, L, D) by block-diagonal complex layers on its Fourier transform over (token, block), in float32.

    The last axis is `num_blocks` blocks of D / num_blocks channels. ReLU acts on the real and imaginary parts of the
    first layer only, softshrink on those of the second.
    """

    def __init__(self, dim: int, num_blocks: int = 4, shrinkage: float = 0.01, init_scale: float = 0.02) -> None:
        super().__init__()
        if dim % num_blocks:
            raise ValueError(f"einfft: {num_blocks} blocks do not divide the width {dim}")
        size = dim // num_blocks
        self.num_blocks, self.shrinkage = num_blocks, shrinkage
        # The leading axis holds real and imaginary parts.
        self.complex_weight_1 = nn.Parameter(torch.randn(2, num_blocks, size, size) * init_scale)
        self.complex_weight_2 = nn.Parameter(torch.randn(2, num_blocks, size, size) * init_scale)
        self.complex_bias_1 = nn.Parameter(torch.randn(2, num_blocks, size) * init_scale)
        self.complex_bias_2 = nn.Parameter(torch.randn(2, num_blocks, size) * init_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, L, D) -> (B, L, D); the result has the dtype of `x`."""
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            blocks = x.to(dtype).unflatten(-1, (self.num_blocks, -1))  # (B, L, nb, D / nb)
            spectrum = torch.fft.fft2(blocks, dim=(1, 2), norm="ortho")
            real, imag = _complex_linear(spectrum.real, spectrum.imag, self.complex_weight_1, self.complex_bias_1)
            real, imag = F.relu(real), F.relu(imag)
            real, imag = _complex_linear(real, imag, self.complex_weight_2, self.complex_bias_2)
            shrunk = torch.complex(F.softshrink(real, self.shrinkage), F.softshrink(imag, self.shrinkage))
            mixed = torch.fft.ifft2(shrunk, dim=(1, 2), norm="ortho").real
        return mixed.flatten(2).to(x.dtype)


def _complex_linear(real: Tensor, imag: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Apply one complex layer per block to (B, L, nb, i) given as real and imaginary parts."""
    weight, bias = weight.to(real.dtype), bias.to(real.dtype)
    both = torch.cat([real, imag], dim=-1).transpose(1, 2)  # (B, nb, L, 2i)
    top = torch.cat([weight[0], weight[1]], dim=-1)  # (nb, i, 2o)
    bottom = torch.cat([-weight[1], weight[0]], dim=-1)
    out = both @ torch.cat([top, bottom], dim=-2) + torch.cat([bias[0], bias[1]], dim=-1).unsqueeze(1)
    out_real, out_imag = out.transpose(1, 2).chunk(2, dim=-1)
    return out_real, out_imag
