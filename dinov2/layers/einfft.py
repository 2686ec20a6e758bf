"""EinFFT, the channel mixer of SiMBA (arXiv 2403.15360): a complex two-layer network in the frequency domain."""

import torch
from torch import Tensor, nn

from dinov2.ops.einfft import BLOCKS, einfft


class EinFFT(nn.Module):
    """Mix (B, L, D) by block-diagonal complex layers on its Fourier transform over (token, block), in float32.

    The last axis is four blocks of D / 4 channels. ReLU acts on the real and imaginary parts of the first layer only,
    softshrink on those of the second.
    """

    def __init__(self, dim: int, shrinkage: float = 0.01, init_scale: float = 0.02) -> None:
        super().__init__()
        if dim % BLOCKS:
            raise ValueError(f"einfft: {BLOCKS} blocks do not divide the width {dim}")
        size = dim // BLOCKS
        self.shrinkage = shrinkage
        # The leading axis holds real and imaginary parts.
        self.complex_weight_1 = nn.Parameter(torch.randn(2, BLOCKS, size, size) * init_scale)
        self.complex_weight_2 = nn.Parameter(torch.randn(2, BLOCKS, size, size) * init_scale)
        self.complex_bias_1 = nn.Parameter(torch.randn(2, BLOCKS, size) * init_scale)
        self.complex_bias_2 = nn.Parameter(torch.randn(2, BLOCKS, size) * init_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, L, D) -> (B, L, D); the result has the dtype of `x`."""
        return einfft(
            x,
            self.complex_weight_1,
            self.complex_bias_1,
            self.complex_weight_2,
            self.complex_bias_2,
            self.shrinkage,
        )
