"""The selective scan in C (`scan.c`) as a custom operator: single precision, on a CPU."""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from dinov2.ops import native

SOURCE = Path(__file__).with_name("scan.c")
CHUNK = 16  # of scan.c: the states at the start of every chunk are kept
MAX_STATES = 256  # a thread's stack holds 2 CHUNK states of 16 channels


class _Problem(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "length", "channels", "states")),
        ("softplus", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("u", "delta", "A", "B", "C", "D", "bias")),
    )


class _Gradients(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("u", "delta", "A", "B", "C", "D", "bias"))


def scan_native(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """Return y (B, D, L) for u, delta (B, D, L), A (D, N), B, C (B, N, L), D and delta_bias (D,), all of float32."""
    y, _ = torch.ops.dinov2.selective_scan_native(
        u.transpose(1, 2).contiguous(),  # (B, L, D); no copy for the layers, whose tensors lie so
        delta.transpose(1, 2).contiguous(),
        A.t().contiguous(),  # (N, D)
        B.transpose(1, 2).contiguous(),  # (B, L, N)
        C.transpose(1, 2).contiguous(),
        None if D is None else D.contiguous(),
        None if delta_bias is None else delta_bias.contiguous(),
        delta_softplus,
        torch.is_grad_enabled(),
    )
    return y.transpose(1, 2)


def _problem(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None, softplus: bool
) -> _Problem:
    batch, length, channels = u.shape
    return _Problem(batch, length, channels, A.shape[0], softplus, *map(native.address, (u, delta, A, B, C, D, bias)))


@torch.library.custom_op("dinov2::selective_scan_native", mutates_args=())
def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Return y (B, L, D) and, with `keep`, the states at the start of every chunk (B, ceil(L / CHUNK), N, D)."""
    y, kept = torch.empty_like(u), _room_for_states(u, A, keep)
    problem = _problem(u, delta, A, B, C, D, bias, softplus)
    native.load(SOURCE).scan_forward(
        ctypes.byref(problem),
        ctypes.c_void_p(native.address(y)),
        ctypes.c_void_p(native.address(kept) if keep else None),
        torch.get_num_threads(),
    )
    return y, kept


@_forward.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(u), _room_for_states(u, A, keep)


def _room_for_states(u: Tensor, A: Tensor, keep: bool) -> Tensor:
    batch, length, channels = u.shape
    return u.new_empty(batch, -(-length // CHUNK), A.shape[0], channels) if keep else u.new_empty(0)


@torch.library.custom_op("dinov2::selective_scan_native_backward", mutates_args=())
def _backward(
    grad: Tensor,
    kept: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta (B, L, D), A (N, D), B, C (B, L, N), D (D,) and bias (D,)."""
    batch, _, channels = u.shape
    threads = torch.get_num_threads()
    groups = max(-(-threads // batch), 1)
    grad_u, grad_delta = torch.empty_like(u), torch.empty_like(delta)
    grad_A = u.new_empty(batch, *A.shape)
    grad_B, grad_C = u.new_zeros(groups, *B.shape), u.new_zeros(groups, *C.shape)
    grad_D, grad_bias = u.new_empty(batch, channels), u.new_empty(batch, channels)
    problem = _problem(u, delta, A, B, C, D, bias, softplus)
    gradients = _Gradients(*map(native.address, (grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias)))
    native.load(SOURCE).scan_backward(
        ctypes.byref(problem),
        ctypes.byref(gradients),
        ctypes.c_void_p(native.address(grad)),
        ctypes.c_void_p(native.address(kept)),
        ctypes.c_int64(groups),
        threads,
    )
    summed = (tensor.sum(0) for tensor in (grad_A, grad_B, grad_C, grad_D, grad_bias))
    return grad_u, grad_delta, *summed  # type: ignore[return-value]


@_backward.register_fake
def _(
    grad: Tensor,
    kept: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, ...]:
    per_channel = u.new_empty(u.shape[-1])
    return (*(torch.empty_like(t) for t in (u, delta, A, B, C)), per_channel, torch.empty_like(per_channel))


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, softplus, _ = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.softplus = softplus  # type: ignore[attr-defined]
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: torch.autograd.function.FunctionCtx, grad_y: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return (None,) * 9
    saved = ctx.saved_tensors  # type: ignore[attr-defined]
    *gradients, grad_D, grad_bias = torch.ops.dinov2.selective_scan_native_backward(
        grad_y.contiguous(),
        *saved,
        ctx.softplus,  # type: ignore[attr-defined]
    )
    has_D, has_bias = saved[-2] is not None, saved[-1] is not None
    return (*gradients, grad_D if has_D else None, grad_bias if has_bias else None, None, None)


_forward.register_autograd(_differentiate, setup_context=_save)
