"""The selective scan of Mamba (arXiv 2312.00752, algorithm 2), with mamba-ssm's signature and shapes.

h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,   y_t = C_t h_t + D u_t,   out = y * silu(z)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dinov2.ops.dispatch import choose_backend
from dinov2.ops.selective_scan import backends as _backends  # noqa: F401  (registers them)
from dinov2.ops.selective_scan.checks import check_inputs
from dinov2.ops.selective_scan.cpu import scan_time_major
from dinov2.ops.selective_scan.doubling import scan_doubling
from dinov2.ops.selective_scan.native import scan_native
from dinov2.ops.selective_scan.reference import scan_reference

__all__ = ["selective_scan"]

PLAIN = {"reference": scan_reference, "cpu": scan_time_major, "doubling": scan_doubling}


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
        backend: `auto`, or one of `triton` and `vendor` (mamba-ssm) on CUDA, `native` (C, compiled at first use) on a
            CPU, and in plain PyTorch anywhere `cpu` (chunked), `doubling` (for exported graphs), `reference` (a loop).

    The recurrence runs in float32, or in float64 when `u` is float64 (in plain PyTorch then).

    Raises:
        ValueError: a shape, dtype or device breaks the rules above (named), or the backend is unknown or cannot run.
    """
    check_inputs(u, delta, A, B, C, D, z, delta_bias)
    name = choose_backend("selective_scan", backend, u.device.type, u.dtype, A.shape[1])
    with torch.autocast(u.device.type, enabled=False):
        if name == "triton":
            from dinov2.ops.selective_scan.triton_scan import scan_triton

            return scan_triton(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        if name == "vendor":
            from dinov2.ops.selective_scan.vendor import scan_vendor

            return scan_vendor(u, delta, A, B, C, D, z, delta_bias, delta_softplus)

        dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
        inputs, step, decay, keys, queries = (tensor.to(dtype) for tensor in (u, delta, A, B, C))
        skip, bias = (None if tensor is None else tensor.to(dtype) for tensor in (D, delta_bias))
        if name == "native":
            y = scan_native(inputs, step, decay, keys, queries, skip, bias, delta_softplus)
        else:
            if bias is not None:
                step = step + bias[:, None]
            y = PLAIN[name](inputs, F.softplus(step) if delta_softplus else step, decay, keys, queries, skip)
        if z is not None:
            y = y * F.silu(z.to(dtype))
    return y.to(u.dtype)
