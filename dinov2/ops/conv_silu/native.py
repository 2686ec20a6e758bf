"""The convolution with SiLU in C (`conv.c`) as a custom operator: single precision, on a CPU."""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from dinov2.ops import native

SOURCE = Path(__file__).with_name("conv.c")
MAX_WIDTH = 16  # of conv.c


class _Conv(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "length", "channels", "width", "before")),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias")),
    )


class _Gradients(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "scratch"))


def conv_silu_native(x: Tensor, weight: Tensor, bias: Tensor | None, before: int) -> Tensor:
    """Return silu(conv(x)) (B, L, D) for x (B, L, D), weight (D, W) and bias (D,), all of float32."""
    return torch.ops.dinov2.conv_silu_native(
        x.contiguous(), weight.t().contiguous(), None if bias is None else bias.contiguous(), before
    )


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, before: int) -> _Conv:
    return _Conv(*x.shape, weight.shape[0], before, *map(native.address, (x, weight, bias)))


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(native.address(tensor))


@torch.library.custom_op("dinov2::conv_silu_native", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, before: int) -> Tensor:
    y = torch.empty_like(x)
    problem = _conv(x, weight, bias, before)
    native.load(SOURCE).conv_forward(ctypes.byref(problem), _at(y), torch.get_num_threads())
    return y


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, before: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("dinov2::conv_silu_native_backward", mutates_args=())
def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, before: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x (B, L, D), weight (W, D) and bias (D,)."""
    batch, _, channels = x.shape
    grad_x, scratch = torch.empty_like(x), torch.empty_like(x)
    grad_weight, grad_bias = x.new_empty(batch, *weight.shape), x.new_empty(batch, channels)
    problem = _conv(x, weight, bias, before)
    gradients = _Gradients(*map(native.address, (grad_x, grad_weight, grad_bias, scratch)))
    native.load(SOURCE).conv_backward(
        ctypes.byref(problem), ctypes.byref(gradients), _at(grad), torch.get_num_threads()
    )
    return grad_x, grad_weight.sum(0), grad_bias.sum(0)


@_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, before: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), x.new_empty(x.shape[-1])


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    *tensors, before = inputs
    ctx.save_for_backward(*tensors)
    ctx.before = before  # type: ignore[attr-defined]


def _differentiate(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors  # type: ignore[attr-defined]
    grad_x, grad_weight, grad_bias = torch.ops.dinov2.conv_silu_native_backward(
        grad.contiguous(),
        x,
        weight,
        bias,
        ctx.before,  # type: ignore[attr-defined]
    )
    return grad_x, grad_weight, None if bias is None else grad_bias, None


_forward.register_autograd(_differentiate, setup_context=_save)
