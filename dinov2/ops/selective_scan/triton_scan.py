"""The selective scan (arXiv 2312.00752, algorithm 2) on a GPU, everything fused into one Triton kernel each way.

The tensors are worked on in token-major order (B, L, D), so that views of such tensors are read where they lie and
neighbouring lanes read neighbouring channels. The two halves are custom operators: tracing and compiling see one node
each. Importing this module imports Triton.
"""

import torch
from torch import Tensor

import dinov2.ops.selective_scan.triton_operators  # noqa: F401 (registers the operators)


def scan_triton(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Return y (B, D, L) in the dtype of u: the selective scan with skip, softplus and gate, computed in float32.

    Shapes are those of `dinov2.ops.selective_scan`: u, delta, z (B, D, L), A (D, N), B, C (B, N, L), D and delta_bias
    (D,), each float32, bfloat16 or float16. The result is the transposed view of a contiguous (B, L, D). u, delta and z
    cost a copy only where their channels are not adjacent in memory. Gradients come in the dtypes of the inputs.

    Raises:
        ValueError: u is float64.
    """
    if u.dtype == torch.float64:
        raise ValueError("selective_scan: u is float64, but the Triton kernel computes in float32; use backend='cpu'")
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    keep = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    y, _ = torch.ops.dinov2.selective_scan_triton(
        _token_major(u),
        _token_major(delta),
        A.float().t().contiguous(),  # (N, D)
        B.float().transpose(1, 2).contiguous(),  # (B, L, N)
        C.float().transpose(1, 2).contiguous(),  # (B, L, N)
        None if D is None else D.float().contiguous(),
        None if z is None else _token_major(z),
        None if delta_bias is None else delta_bias.float().contiguous(),
        delta_softplus,
        keep,
    )
    return y.transpose(1, 2)  # (B, D, L)


def _token_major(x: Tensor) -> Tensor:
    """(B, D, L) -> (B, L, D) with adjacent channels."""
    x = x.transpose(1, 2)
    return x if x.stride(2) == 1 else x.contiguous()
