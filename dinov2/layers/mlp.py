"""The transformer's feed-forward layer."""

import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.layers.linear import Linear


class Mlp(nn.Module):
    """Linear, GELU, Linear over the last axis."""

    def __init__(self, dim: int, hidden_dim: int, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim, bias=bias)
        self.fc2 = Linear(hidden_dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) -> (..., D)."""
        return self.fc2(F.gelu(self.fc1(x)))
