"""The selective scan by doubling (Hillis and Steele 1986): log2(L) shifted multiply-adds over the whole sequence.

A few dozen plain tensor operators instead of a loop over time or an operator of our own, which is what a graph exported
to TorchScript or ONNX needs. It does log2(L) times the work of the recurrence, on tensors of (B, L, N, D).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dinov2.ops.decay import log_decay


def scan_doubling(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> Tensor:
    """Return y (B, D, L) for u, delta (B, D, L), A (D, N), B, C (B, N, L), D (D,), all of one dtype."""
    length = int(u.shape[-1])  # fixed in an exported graph
    step = delta.transpose(1, 2).unsqueeze(2)  # (B, L, 1, D)
    decay = torch.exp(log_decay(step, A.t()))  # (B, L, N, D)
    state = (step * u.transpose(1, 2).unsqueeze(2)) * B.transpose(1, 2).unsqueeze(-1)  # (B, L, N, D)
    shift = 1
    while shift < length:  # after each turn, state[t] holds the inputs of the 2 * shift steps up to t
        state = state + decay * F.pad(state[:, :-shift], (0, 0, 0, 0, shift, 0))
        decay = decay * F.pad(decay[:, :-shift], (0, 0, 0, 0, shift, 0))
        shift *= 2
    y = (state * C.transpose(1, 2).unsqueeze(-1)).sum(2).transpose(1, 2)  # (B, D, L)
    return y if D is None else y + D[:, None] * u
