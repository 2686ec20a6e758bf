"""The projection head of DINO and iBOT (arXiv 2104.14294, section 3.1)."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.utils.precision import at_least_float32


class WeightNormLinear(nn.Module):
    """A bias-free linear layer whose rows are weight_g * weight_v / ||weight_v||; weight_g starts at 1."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1))
        self.weight_v = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5))  # nn.Linear's own, as in DINOv2

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) -> (..., out)."""
        return F.linear(x, self.weight_g * F.normalize(self.weight_v, dim=-1))


class DINOHead(nn.Module):
    """An MLP with GELU, L2 normalisation, and a weight-normalised layer of prototypes."""

    def __init__(self, in_dim: int, out_dim: int, nlayers: int = 3, hidden_dim: int = 2048, bottleneck_dim: int = 256):
        super().__init__()
        widths = [in_dim, *[hidden_dim] * (nlayers - 1), bottleneck_dim]
        layers: list[nn.Module] = []
        for i, (width_in, width_out) in enumerate(pairwise(widths)):
            linear = nn.Linear(width_in, width_out)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            layers += [nn.GELU(), linear] if i else [linear]
        self.mlp = nn.Sequential(*layers)
        self.last_layer = WeightNormLinear(bottleneck_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Score embeddings (N, D) against the prototypes: (N, K)."""
        # The bottleneck is small at first, and its squares vanish in float16.
        return self.last_layer(F.normalize(at_least_float32(self.mlp(x)), dim=-1))
