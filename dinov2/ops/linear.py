"""Linear layers x W^T + b, on a CPU by oneDNN where PyTorch's own choice is slow.

PyTorch multiplies float32 matrices on CPUs by MKL, which leaves the wide registers of AMD's processors unused; oneDNN,
which PyTorch brings along for convolutions, uses them (an EPYC of the Zen 5 generation: 195 against 85 GFLOP/s on a
core). Backends: `onednn`, in float32 on such processors, and `plain`, torch.nn.functional.linear, anywhere.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dinov2.ops.dispatch import Backend, choose_backend, keep_backend, register_backends
from dinov2.utils.machine import cpu_model


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Return x W^T + b (..., O) for x (..., I), weight (O, I) and bias (O,).

    Inside autocast, and in a graph that is compiled, traced or exported, the backend is `plain`; a warning says so,
    once, if another one was forced.

    Raises:
        BackendError: the backend is unknown or cannot run.
    """
    why = _why_only_plain(x.device.type)
    if why is not None:
        keep_backend("linear", backend, "plain", why)
        return F.linear(x, weight, bias)
    if weight.dtype != x.dtype or x.numel() == 0:
        return F.linear(x, weight, bias)
    if choose_backend("linear", backend, x.device.type, x.dtype, int(x.shape[-1])) == "plain":
        return F.linear(x, weight, bias)
    return _OneDnnLinear.apply(x, weight, bias)


def _why_only_plain(device: str) -> str | None:
    """Return what leaves no choice of a backend here, or None."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return "a graph holds PyTorch's own operators"
    return "autocast lowers PyTorch's own operators only" if torch.is_autocast_enabled(device) else None


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x.reshape(-1, x.shape[-1]), weight, bias).reshape(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows, of_out = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (x, grad))  # (M, I), (M, O)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _product(of_out, weight.T).reshape(x.shape)
        if ctx.needs_input_grad[1]:
            # The first factor is copied to lie row by row: better the narrower one.
            wide = weight.shape[0] > weight.shape[1]
            of_weight = _product(rows.T, of_out.T).T if wide else _product(of_out.T, rows.T)  # (O, I)
        if ctx.needs_input_grad[2]:
            of_bias = of_out.sum(0)
        return of_x, of_weight, of_bias


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a b^T + bias (M, N) for a (M, K) and b (N, K) in float32."""
    return torch.ops.mkldnn._linear_pointwise(a, _without_gaps(b), bias, "none", [], "")


def _without_gaps(matrix: Tensor) -> Tensor:
    """Return the matrix, copied if its rows or columns lie apart in memory.

    oneDNN takes the second factor as it lies, and multiplies by one with gaps (part of a wider tensor) in a plain loop,
    a thousand times as slow.
    """
    if matrix.is_contiguous() or matrix.T.is_contiguous():
        return matrix
    return matrix.T.contiguous().T if matrix.stride(0) < matrix.stride(1) else matrix.contiguous()


@cache
def _why_not() -> str | None:
    """Return why oneDNN is no gain or cannot be called here, or None."""
    capability = torch.backends.cpu.get_cpu_capability()
    if "AMD" not in cpu_model() or capability != "AVX512":
        return f"{cpu_model()} ({capability}) is no AMD processor with AVX-512: MKL or OpenBLAS serves it as well"
    try:
        a, b = torch.arange(6.0).reshape(2, 3), torch.arange(15.0).reshape(3, 5)
        right = torch.equal(_product(a, b.T), a @ b)
    except Exception as error:  # a PyTorch without oneDNN, or with another interface to it
        return f"PyTorch's interface to oneDNN cannot be called ({type(error).__name__}: {error})"
    return None if right else "PyTorch's interface to oneDNN gives other products"


def _onednn_refusal(device: str, dtype: torch.dtype, width: int) -> str | None:
    if device != "cpu":
        return "it needs a CPU"
    return _why_not() if dtype == torch.float32 else f"it computes in float32, the inputs are {dtype}"


def _anywhere(device: str, dtype: torch.dtype, width: int) -> None:
    return None


register_backends("linear", (Backend("onednn", _onednn_refusal), Backend("plain", _anywhere)))
