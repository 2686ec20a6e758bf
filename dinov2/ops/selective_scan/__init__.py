"""The selective scan of Mamba (arXiv 2312.00752, algorithm 2), with mamba-ssm's signature and shapes.

h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,   y_t = C_t h_t + D u_t,   out = y * silu(z)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dinov2.ops.dispatch import choose_backend
from dinov2.ops.selective_scan.checks import check_inputs
from dinov2.ops.selective_scan.cpu import scan_time_major
from dinov2.ops.selective_scan.reference import scan_reference

__all__ = ["selective_scan"]

BACKENDS = ("reference", "cpu")


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Scan `u` (B, D, L) with input-dependent parameters; returns (B, D, L) in the dtype of `u`.

    Args:
        u: inputs (B, D, L).
        delta: step sizes (B, D, L), before bias and softplus.
        A: real state matrix (D, N), negative for a decaying state.
        B: input projections (B, N, L).
        C: output projections (B, N, L).
        D: skip weights (D,).
        z: gate (B, D, L); the output is multiplied by silu(z).
        delta_bias: added to delta (D,).
        delta_softplus: apply softplus to delta (after the bias).
        backend: `auto`, `cpu` (chunked, plain PyTorch, runs on any device) or `reference` (a plain loop).

    The recurrence runs in float32, or in float64 when `u` is float64.

    Raises:
        ValueError: a shape, dtype or device breaks the rules above (named), or the backend is unknown.
    """
    check_inputs(u, delta, A, B, C, D, z, delta_bias)
    name = choose_backend("selective_scan", backend, BACKENDS, default="cpu")
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    with torch.autocast(u.device.type, enabled=False):
        step = delta.to(dtype)
        if delta_bias is not None:
            step = step + delta_bias.to(dtype)[:, None]
        if delta_softplus:
            step = F.softplus(step)
        scan = scan_reference if name == "reference" else scan_time_major
        skip = None if D is None else D.to(dtype)
        y = scan(u.to(dtype), step, A.to(dtype), B.to(dtype), C.to(dtype), skip)
        if z is not None:
            y = y * F.silu(z.to(dtype))
    return y.to(u.dtype)
