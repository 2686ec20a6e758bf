"""LayerScale (arXiv 2103.17239)."""

import torch
from torch import Tensor, nn


class LayerScale(nn.Module):
    """Multiply each channel by a learned gain that starts at `init`."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.init = init
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        """Scale (..., D) by gamma (D,)."""
        return x * self.gamma
