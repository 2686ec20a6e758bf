"""State-space duality as a plain loop over time."""

import torch
from torch import Tensor

from dinov2.ops.decay import log_decay


def ssd_reference(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Return y (B, L, H, P) for x (B, L, H, P), dt (B, L, H), A (H,), B and C (B, L, G, N)."""
    batch, length, heads, channels = x.shape
    repeats = heads // B.shape[2]
    B, C = B.repeat_interleave(repeats, 2), C.repeat_interleave(repeats, 2)  # (B, L, H, N)
    state = x.new_zeros(batch, heads, channels, B.shape[-1])
    outputs = []
    for t in range(length):
        decay = torch.exp(log_decay(dt[:, t], A))[..., None, None]  # (B, H, 1, 1)
        state = decay * state + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        outputs.append((state * C[:, t, :, None]).sum(-1))  # (B, H, P)
    return torch.stack(outputs, dim=1)
