"""State-space duality as one masked attention over the whole sequence (section 6 of arXiv 2405.21060).

y = (M * (C B^T)) (dt x) with M_ij = exp(sum_{j < k <= i} dt_k A) for j <= i. It is quadratic in the length, but a dozen
plain operators without a loop, an operation in place or a device of its own, which is what an exported graph needs.
"""

import torch
from torch import Tensor

from dinov2.ops.decay import log_decay


def ssd_quadratic(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Return y (B, L, H, P) for x (B, L, H, P), dt (B, L, H), A (H,), B and C (B, L, G, N)."""
    heads = (B.shape[2], -1)
    # In float64, since differences of the running sum must keep small steps after a large one.
    total = torch.cumsum(log_decay(dt.double(), A.double()), dim=1).transpose(1, 2)  # (B, H, L)
    distance = (total.unsqueeze(-1) - total.unsqueeze(-2)).to(x.dtype)  # (B, H, L, L)
    scores = C.transpose(1, 2) @ B.permute(0, 2, 3, 1)  # (B, G, L, L)
    decay = torch.exp(distance.tril()).tril().unflatten(1, heads)  # (B, G, R, L, L)
    driven = (x * dt.unsqueeze(-1)).transpose(1, 2).unflatten(1, heads)  # (B, G, R, L, P)
    return ((decay * scores.unsqueeze(2)) @ driven).flatten(1, 2).transpose(1, 2)
