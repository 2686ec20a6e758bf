"""Hydra's scan for exported graphs: the whole sequence as one masked attention (section 6 of arXiv 2405.21060).

y = (M * (C B^T)) (dt x) with M_ij = exp(sum_{j < k <= i} dt_k A) for j <= i. It is quadratic in the length, but a dozen
operators without a loop, an operation in place or a device of its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.layers.hydra import HydraScan


class QuadraticScan(nn.Module):
    """A `HydraScan` in elementary operators, with the same parameters."""

    def __init__(self, scan: HydraScan) -> None:
        super().__init__()
        self.A_log, self.D, self.dt_bias = scan.A_log, scan.D, scan.dt_bias

    def forward(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """Scan x (B, L, H, P) with raw step sizes dt (B, L, H), B and C (B, L, 1, N)."""
        step = F.softplus(dt + self.dt_bias).transpose(1, 2)  # (B, H, L)
        # Differences of long sums: in float32 they would lose the digits of near neighbours.
        total = torch.cumsum((step * -torch.exp(self.A_log)[:, None]).double(), dim=-1)
        distance = (total.unsqueeze(-1) - total.unsqueeze(-2)).float()  # (B, H, L, L)
        scores = C.transpose(1, 2) @ B.permute(0, 2, 3, 1)  # (B, 1, L, L)
        weights = (torch.exp(distance.tril()) * scores).tril()
        driven = x.transpose(1, 2) * step.unsqueeze(-1)  # (B, H, L, P)
        return (weights @ driven).transpose(1, 2)


def with_quadratic_scans(model: nn.Module) -> nn.Module:
    """Replace every `HydraScan` inside a model, and return the model."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, HydraScan):
                setattr(module, name, QuadraticScan(child))
    return model
