"""State-space duality (arXiv 2405.21060) on a GPU, one Triton kernel each way.

Matrices are multiplied in the inputs' precision with float32 accumulation; decays and the state that is carried from
chunk to chunk are float32 throughout. The two halves are custom operators: tracing and compiling see one node each.
Importing this module imports Triton.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dinov2.ops.ssd.triton_backward import ssd_backward
from dinov2.ops.ssd.triton_forward import ssd_forward


def ssd_triton(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Return y (B, L, H, P), contiguous and in the dtype of x, for the arguments of `dinov2.ops.ssd` (without D).

    Shapes: x (B, L, H, P), dt (B, L, H), A (H,), B and C (B, L, G, N), each float32, bfloat16 or float16. If x, B and C
    are all bfloat16, matrices are multiplied in bfloat16; if one of them is float32, in true float32; else in TF32,
    which has the digits of float16 and the range of float32. Gradients come in the dtypes of the inputs.

    Raises:
        ValueError: x is float64.
    """
    if x.dtype == torch.float64:
        raise ValueError("ssd: x is float64, but the Triton kernel computes in float32; use backend='cpu'")
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, dt, A, B, C))
    x, B, C = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (x, B, C))
    y, _ = torch.ops.dinov2.ssd_triton(x, dt, A.float().contiguous(), B, C, keep)
    return y


def _is_bfloat16(x: Tensor, B: Tensor, C: Tensor) -> bool:
    return {x.dtype, B.dtype, C.dtype} == {torch.bfloat16}


def _options(x: Tensor, B: Tensor, C: Tensor) -> dict[str, Any]:
    """Return the compile-time options that both kernels share."""
    block_p, block_n = _block(x.shape[3]), _block(B.shape[3])
    exact = torch.float32 in (x.dtype, B.dtype, C.dtype)
    low = _is_bfloat16(x, B, C)
    return {
        "CHANNELS": x.shape[3],
        "STATES": B.shape[3],
        "CHUNK": _chunk_size(x, B, C),
        "BLOCK_P": block_p,
        "BLOCK_N": block_n,
        "DOT": tl.bfloat16 if low else tl.float32,
        "PRECISION": "ieee" if exact else "tf32",
        "num_warps": 4 if low and block_p * block_n <= 64 * 64 else 8,
        "num_stages": 1,
    }


def _block(size: int) -> int:
    """Return the smallest size of a matrix product that holds `size`."""
    return max(16, triton.next_power_of_2(size))


def _chunk_size(x: Tensor, B: Tensor, C: Tensor) -> int:
    """Return the tokens of a chunk: as many as leave the backward's operands in registers and shared memory."""
    wide = _block(x.shape[3]) * _block(B.shape[3]) > 64 * 64
    exact = torch.float32 in (x.dtype, B.dtype, C.dtype)
    return 16 if x.shape[1] <= 16 or exact or (wide and not _is_bfloat16(x, B, C)) else 32


def _strides(x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> tuple[int, ...]:
    return (*x.stride()[:3], *dt.stride(), *B.stride()[:3], *C.stride()[:3])


def _empty_kept(x: Tensor, B: Tensor, C: Tensor, keep: bool) -> Tensor:
    batch, length, heads, channels = x.shape
    chunks = -(-length // _chunk_size(x, B, C)) - 1 if keep else 0
    dtype = torch.bfloat16 if _is_bfloat16(x, B, C) else torch.float32
    return x.new_empty(batch, heads, chunks, B.shape[3], channels, dtype=dtype)


@torch.library.custom_op("dinov2::ssd_triton", mutates_args=())
def _forward(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """Return y (B, L, H, P) and the states after all chunks but the last (B, H, K - 1, N, P), none without `keep`."""
    batch, length, heads, _ = x.shape
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    kept = _empty_kept(x, B, C, keep)
    with torch.cuda.device_of(x):
        ssd_forward[(batch * heads,)](
            *(x, dt, A, B, C, y, kept, length, heads, heads // B.shape[2], *_strides(x, dt, B, C)),
            KEEP=keep,
            **_options(x, B, C),
        )
    return y, kept


@_forward.register_fake
def _(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), _empty_kept(x, B, C, keep)


@torch.library.custom_op("dinov2::ssd_triton_backward", mutates_args=())
def _backward(
    grad: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, dt, A, B and C from that of y (B, L, H, P)."""
    batch, length, heads, _ = x.shape
    groups, states = B.shape[2:]
    grad_x, grad_dt = (torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (x, dt))
    part_A = A.new_empty(batch, heads)
    part_B, part_C = (A.new_empty(batch, length, heads, states) for _ in range(2))
    with torch.cuda.device_of(x):
        ssd_backward[(batch * heads,)](
            *(grad.contiguous(), x, dt, A, B, C, kept, grad_x, grad_dt, part_A, part_B, part_C),
            *(length, heads, heads // groups, *_strides(x, dt, B, C)),
            **_options(x, B, C),
        )
    grad_B, grad_C = (part.unflatten(2, (groups, heads // groups)).sum(3) for part in (part_B, part_C))  # (B, L, G, N)
    return grad_x, grad_dt, part_A.sum(0), grad_B.to(B.dtype), grad_C.to(C.dtype)


@_backward.register_fake
def _(
    grad: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    contiguous = (torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (x, dt, A, B, C))
    return tuple(contiguous)  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    return (*torch.ops.dinov2.ssd_triton_backward(grad, *ctx.saved_tensors), None)


_forward.register_autograd(_differentiate, setup_context=_save)
