"""State-space duality by chunks, in plain PyTorch: matrix products within a chunk, a short recurrence between chunks.

Within a chunk the scan is a masked attention, y = (M * (C B^T)) (dt x) with M_ij = exp(sum_{j < k <= i} dt_k A), which
is section 6 of arXiv 2405.21060. The cost is linear in the length.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def ssd_chunked(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int = 64) -> Tensor:
    """Return y (B, L, H, P) for x (B, L, H, P), dt (B, L, H), A (H,), B and C (B, L, G, N)."""
    length, heads = x.shape[1], x.shape[2]
    chunk = min(chunk_size, length)
    padding = -length % chunk
    repeats = heads // B.shape[2]

    def by_chunk(tensor: Tensor) -> Tensor:
        tensor = F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, padding))
        return tensor.unflatten(1, (-1, chunk)).movedim(3, 2)  # (B, K, H or G, chunk, ...)

    step = by_chunk(dt[..., None]).squeeze(-1)  # (B, K, H, c)
    driven = by_chunk(x) * step[..., None]  # (B, K, H, c, P)
    keys = by_chunk(B).repeat_interleave(repeats, 2)  # (B, K, H, c, N)
    queries = by_chunk(C).repeat_interleave(repeats, 2)
    total = torch.cumsum(step * A[:, None], dim=-1)  # log decay since the chunk's start, inclusive

    distance = total[..., :, None] - total[..., None, :]  # (B, K, H, c, c)
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
    kernel = torch.exp(distance.masked_fill(~causal, float("-inf")))
    y = (kernel * (queries @ keys.transpose(-1, -2))) @ driven  # (B, K, H, c, P)

    to_end = torch.exp(total[..., -1:] - total)[..., None]  # (B, K, H, c, 1)
    made = (driven * to_end).transpose(-1, -2) @ keys  # state that each chunk adds, (B, K, H, P, N)
    kept = torch.exp(total[..., -1])[..., None, None]  # (B, K, H, 1, 1)
    state = torch.zeros_like(made[:, 0])
    entering = []
    for k in range(made.shape[1]):
        entering.append(state)
        state = kept[:, k] * state + made[:, k]
    before = torch.stack(entering, dim=1)  # (B, K, H, P, N)
    y = y + torch.exp(total)[..., None] * (queries @ before.transpose(-1, -2))
    return y.movedim(2, 3).flatten(1, 2)[:, :length]
