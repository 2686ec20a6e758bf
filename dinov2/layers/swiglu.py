"""SwiGLU feed-forward layer (arXiv 2002.05202), as in DINOv2's ViT-g."""

import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.layers.linear import Linear


class SwiGLU(nn.Module):
    """silu(W1 x) * (W2 x), projected back; the hidden width is 2/3 of `hidden_dim`, rounded up to a multiple of 8."""

    def __init__(self, dim: int, hidden_dim: int, bias: bool = True) -> None:
        super().__init__()
        hidden = (int(hidden_dim * 2 / 3) + 7) // 8 * 8
        self.w12 = Linear(dim, 2 * hidden, bias=bias)
        self.w3 = Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) -> (..., D)."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)
