"""The selective scan's two Triton kernels as custom operators: tracing and compiling see one node each.

Shapes are token-major: u, delta, z (B, L, D), A (N, D), B, C (B, L, N), D and bias (D,). u, delta and z have adjacent
channels and any dtype up to float32; the others are float32 and contiguous.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from dinov2.ops.selective_scan.triton_backward import scan_backward
from dinov2.ops.selective_scan.triton_forward import scan_forward

# Tokens between two kept states, a multiple of the kernels' TOKENS. Kept states take 4 N / CHUNK bytes a token and
# channel; the backward runs through CHUNK / 2 + 2 tokens, on average, to have the states of TOKENS = 4.
CHUNK = 16
LANES = 32


@torch.library.custom_op("dinov2::selective_scan_triton", mutates_args=())
def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Return y (B, L, D) and the states at the start of every chunk (B, ceil(L / CHUNK), N, D), none without `keep`."""
    u, delta, gate = _adjacent(u), _adjacent(delta), _adjacent(u if z is None else z)
    batch, length, channels = u.shape
    states = A.shape[0]
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    kept = _empty_kept(u, states, keep)
    block_n = triton.next_power_of_2(states)
    block_d = min(LANES, triton.next_power_of_2(channels), max(1, 16 * LANES // block_n))  # 16 states a lane
    with torch.cuda.device_of(u):
        scan_forward[(batch * triton.cdiv(channels, block_d),)](
            *(u, delta, A, B, C, A if D is None else D, gate, A if bias is None else bias, y, kept),
            *(length, channels, *u.stride()[:2], *delta.stride()[:2], *gate.stride()[:2], 0),
            HAS_D=D is not None,
            HAS_Z=z is not None,
            HAS_BIAS=bias is not None,
            SOFTPLUS=softplus,
            KEEP=keep,
            CHUNK=CHUNK,
            STATES=states,
            BLOCK_N=block_n,
            BLOCK_D=block_d,
            num_warps=1,
            num_stages=1,
        )
    return y, kept


def _adjacent(x: Tensor) -> Tensor:
    """Return x, copied only if a compiler has laid it out in another way than it was given."""
    return x if x.stride(2) == 1 else x.contiguous()


def _empty_kept(u: Tensor, states: int, keep: bool) -> Tensor:
    batch, length, channels = u.shape
    chunks = -(-length // CHUNK) if keep else 0
    return u.new_empty(batch, chunks, states, channels, dtype=torch.float32)


@_forward.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(u, memory_format=torch.contiguous_format), _empty_kept(u, A.shape[0], keep)


@torch.library.custom_op("dinov2::selective_scan_triton_backward", mutates_args=())
def _backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    kept: Tensor,
    softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta, A, B, C, D, z and bias; those of absent arguments are of no use."""
    u, delta, gate = _adjacent(u), _adjacent(delta), _adjacent(u if z is None else z)
    batch, length, channels = u.shape
    states = A.shape[0]
    block_n = triton.next_power_of_2(states)
    block_d = min(LANES, triton.next_power_of_2(channels))
    blocks = triton.cdiv(channels, block_d)
    grad_u, grad_delta, grad_z = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta, gate))
    part_A = A.new_empty(batch, states, channels)
    part_D, part_bias = A.new_empty(batch, channels), A.new_empty(batch, channels)
    part_B, part_C = (A.new_empty(batch, blocks, length, states) for _ in range(2))
    with torch.cuda.device_of(u):
        scan_backward[(batch * blocks,)](
            *(grad.contiguous(), u, delta, A, B, C, A if D is None else D, gate, A if bias is None else bias, kept),
            *(grad_u, grad_delta, part_A, part_B, part_C, part_D, grad_z, part_bias),
            *(length, channels, *u.stride()[:2], *delta.stride()[:2], *gate.stride()[:2], 0),
            HAS_D=D is not None,
            HAS_Z=z is not None,
            HAS_BIAS=bias is not None,
            SOFTPLUS=softplus,
            CHUNK=CHUNK,
            STATES=states,
            BLOCK_N=block_n,
            BLOCK_D=block_d,
            num_warps=min(8, max(1, block_n * block_d // (16 * LANES))),
            num_stages=1,
        )
    return grad_u, grad_delta, part_A.sum(0), part_B.sum(1), part_C.sum(1), part_D.sum(0), grad_z, part_bias.sum(0)


@_backward.register_fake
def _(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    kept: Tensor,
    softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_u, grad_delta, grad_z = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta, u if z is None else z)
    )
    row = A.new_empty(A.shape[1])
    return grad_u, grad_delta, torch.empty_like(A), torch.empty_like(B), torch.empty_like(C), row, grad_z, row.clone()


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.softplus, _ = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    tensors = ctx.saved_tensors
    gradients = torch.ops.dinov2.selective_scan_triton_backward(grad, *tensors, ctx.softplus)
    present = (tensor is not None for tensor in tensors[:8])
    return (*(gradient if there else None for gradient, there in zip(gradients, present, strict=True)), None, None)


_forward.register_autograd(_differentiate, setup_context=_save)
