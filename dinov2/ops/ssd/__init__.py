"""State-space duality (Mamba-2, arXiv 2405.21060) with the shapes of mamba-ssm's `mamba_chunk_scan_combined`.

For each head h, with a scalar decay per step:
H_t = exp(dt_t A_h) H_{t-1} + dt_t x_t B_t^T,   y_t = H_t C_t + D_h x_t
"""

import torch
from torch import Tensor

from dinov2.ops.checks import Rule, check_tensors
from dinov2.ops.dispatch import choose_backend
from dinov2.ops.ssd import backends as _backends  # noqa: F401  (registers them)
from dinov2.ops.ssd.cpu import ssd_chunked
from dinov2.ops.ssd.quadratic import ssd_quadratic
from dinov2.ops.ssd.reference import ssd_reference

__all__ = ["ssd"]


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int = 64,
    D: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Scan `x` (B, L, H, P) and return (B, L, H, P) in its dtype.

    Args:
        x: inputs (B, L, H, P): H heads of P channels.
        dt: positive step sizes (B, L, H).
        A: real, negative decay of each head (H,).
        B: input projections (B, L, G, N); G groups share them among H / G heads.
        C: output projections (B, L, G, N).
        chunk_size: tokens that are handled as one matrix product.
        D: skip weights (H,).
        backend: `auto`, `triton` or `vendor` (mamba-ssm) on CUDA, and in plain PyTorch anywhere `cpu` (chunked),
            `quadratic` (for exported graphs) or `reference` (a loop).

    The computation runs in float32, or in float64 when `x` is float64.

    Raises:
        ValueError: a shape breaks the rules above (named), or the backend is unknown.
    """
    _check(x, dt, A, B, C, D)
    if chunk_size < 1:
        raise ValueError(f"ssd: chunk_size is {chunk_size}; it must be positive")
    name = choose_backend("ssd", backend, x.device.type, x.dtype, B.shape[-1], x.shape[-1])
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        if name in ("triton", "vendor"):
            y = _on_cuda(name, x, dt, A, B, C, chunk_size)
            return y if D is None else y + (D[:, None] * x).to(y.dtype)

        inputs, step, decay, keys, queries = (tensor.to(dtype) for tensor in (x, dt, A, B, C))
        if name == "reference":
            y = ssd_reference(inputs, step, decay, keys, queries)
        elif name == "quadratic":
            y = ssd_quadratic(inputs, step, decay, keys, queries)
        else:
            y = ssd_chunked(inputs, step, decay, keys, queries, chunk_size)
        if D is not None:
            y = y + D.to(dtype)[:, None] * inputs
    return y.to(x.dtype)


def _on_cuda(name: str, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int) -> Tensor:
    """Return the scan without skip by a kernel that takes the inputs in their own dtypes."""
    if name == "triton":
        from dinov2.ops.ssd.triton_ssd import ssd_triton

        return ssd_triton(x, dt, A, B, C)
    from dinov2.ops.ssd.vendor import ssd_vendor

    return ssd_vendor(x, dt, A, B, C, chunk_size)


def _check(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> None:
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"ssd: x has shape {tuple(x.shape)}; expected a non-empty (batch, length, heads, channels)")
    batch, length, heads, _ = x.shape
    if B.ndim != 4 or 0 in B.shape or heads % B.shape[2]:
        raise ValueError(
            f"ssd: B has shape {tuple(B.shape)}; expected a non-empty (batch, length, divisor of {heads}, states)"
        )
    rules: list[Rule] = [
        ("dt", dt, (batch, length, heads)),
        ("A", A, (heads,)),
        ("B", B, (batch, length, *B.shape[2:])),
        ("C", C, tuple(B.shape)),
        ("D", D, (heads,)),
    ]
    check_tensors("ssd", ("x", x), rules)
