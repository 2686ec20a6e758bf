"""The selective scan as a plain loop over time: slow, differentiable by autograd, the yardstick of the others."""

import torch
from torch import Tensor

from dinov2.ops.decay import log_decay


def scan_reference(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> Tensor:
    """Return y (B, D, L) for u, delta (B, D, L), A (D, N), B, C (B, N, L), D (D,), all of one dtype."""
    batch, channels, length = u.shape
    state = u.new_zeros(batch, channels, A.shape[1])
    outputs = []
    for t in range(length):
        decay = torch.exp(log_decay(delta[:, :, t, None], A))  # (B, D, N)
        state = decay * state + (delta[:, :, t] * u[:, :, t])[..., None] * B[:, None, :, t]
        outputs.append((state * C[:, None, :, t]).sum(-1))  # (B, D)
    y = torch.stack(outputs, dim=-1)  # (B, D, L)
    return y if D is None else y + D[:, None] * u
