"""Other implementations of state-space duality (arXiv 2405.21060).

All take x (B, L, H, P), positive steps dt (B, L, H), A (H,) and BC (B, L, 1, 2N), which is B and C side by side as
Hydra has them, and return y (B, L, H, P) with S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T and y_t = S_t C_t.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64


def exact_ssd(x: Tensor, dt: Tensor, A: Tensor, BC: Tensor) -> Tensor:
    """The recurrence as it is written, token by token; meant for float64. Linear in the length, also backwards."""
    B, C = BC.squeeze(2).chunk(2, dim=-1)  # (B, L, N)
    state = x.new_zeros(x.shape[0], x.shape[2], x.shape[3], B.shape[-1])  # (B, H, P, N)
    outputs = []
    for u, step, b, c in zip(x.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        decay = torch.exp(step * A)[..., None, None]  # (B, H, 1, 1)
        state = decay * state + (step[..., None] * u)[..., None] * b[:, None, None]
        outputs.append((state @ c[:, None, :, None]).squeeze(-1))  # (B, H, P)
    return torch.stack(outputs, dim=1)


def literal_loop(x: Tensor, dt: Tensor, A: Tensor, BC: Tensor) -> Tensor:
    """The same recurrence in float32 with einsum at every token, differentiated by autograd."""
    B, C = BC.float().squeeze(2).chunk(2, dim=-1)  # (B, L, N)
    decay = torch.exp(torch.einsum("blh,h->blh", dt.float(), A))
    driven = torch.einsum("blh,blhp->blhp", dt.float(), x.float())
    state = torch.zeros(*x.shape[:1], *x.shape[2:], B.shape[-1], device=x.device)  # (B, H, P, N)
    outputs = []
    for t in range(x.shape[1]):
        state = decay[:, t, :, None, None] * state + torch.einsum("bhp,bn->bhpn", driven[:, t], B[:, t])
        outputs.append(torch.einsum("bhpn,bn->bhp", state, C[:, t]))
    return torch.stack(outputs, dim=1).to(x.dtype)


def block_matrix(x: Tensor, dt: Tensor, A: Tensor, BC: Tensor) -> Tensor:
    """The paper's block decomposition (section 6) by einsum in float32: diagonal blocks, states, passing, outputs."""
    length = x.shape[1]
    chunk = min(CHUNK, length)
    padding = -length % chunk

    def blocks(tensor: Tensor) -> Tensor:
        """(B, L, ...) -> (B, K, c, ...)."""
        return F.pad(tensor.float(), (0, 0) * (tensor.ndim - 2) + (0, padding)).unflatten(1, (-1, chunk))

    B, C = blocks(BC.squeeze(2)).chunk(2, dim=-1)  # (B, K, c, N)
    step = blocks(dt)
    driven = blocks(x) * step[..., None]  # (B, K, c, H, P)
    log_decay = (step * A).movedim(-1, 1)  # (B, H, K, c)
    total = log_decay.cumsum(-1)
    within = _segment_sums(log_decay).exp()  # (B, H, K, c, c)
    diagonal = torch.einsum("bkin,bkjn,bhkij,bkjhp->bkihp", C, B, within, driven)
    made = torch.einsum("bkjn,bhkj,bkjhp->bkhpn", B, (total[..., -1:] - total).exp(), driven)
    made = F.pad(made, (0, 0, 0, 0, 0, 0, 1, 0))  # (B, K + 1, H, P, N), from no state
    between = _segment_sums(F.pad(total[..., -1], (1, 0))).exp()  # (B, H, K + 1, K + 1)
    entering = torch.einsum("bhkj,bjhpn->bkhpn", between, made)[:, :-1]
    carried = torch.einsum("bkin,bkhpn,bhki->bkihp", C, entering, total.exp())
    return (diagonal + carried).flatten(1, 2)[:, :length].to(x.dtype)


def _segment_sums(values: Tensor) -> Tensor:
    """Return S (..., T, T) with S_ij = sum of values (..., T) over j < k <= i, and -inf above the diagonal."""
    size = values.shape[-1]
    causal = torch.ones(size, size, dtype=torch.bool, device=values.device).tril()
    rows = values[..., None].expand(*values.shape, size).masked_fill(~causal.tril(-1), 0.0)
    return rows.cumsum(-2).masked_fill(~causal, float("-inf"))


def mamba_ssm_ssd() -> Callable[..., Tensor]:
    """Return mamba-ssm's Triton kernels.

    Raises:
        ImportError: mamba-ssm is not installed, or not with what it needs.
    """
    kernels: Any = importlib.import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined

    def scan(x: Tensor, dt: Tensor, A: Tensor, BC: Tensor) -> Tensor:
        B, C = BC.chunk(2, dim=-1)
        return kernels(x, dt, A, B, C, CHUNK)

    return scan
