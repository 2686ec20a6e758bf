"""EinFFT as matrix products between a spectrum and a signal, with its gradient written out.

A complex layer on rows (real, imaginary) is one real product with [[Wr, Wi], [-Wi, Wr]].
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dinov2.ops.einfft.dft import half_spectrum_matrix
from dinov2.ops.einfft.spectrum import signal, signal_native, spectrum, spectrum_native


def einfft_products(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, shrinkage: float, native: bool
) -> Tensor:
    """Return y (B, L, D) for x (B, L, D), complex weights (2, 4, S, S) and biases (2, 4, S), all of one dtype."""
    matrix = half_spectrum_matrix(x.shape[1], x.dtype, x.device)
    arguments = (x.contiguous(), matrix, _real_form(w1), b1.movedim(0, 1), _real_form(w2), b2.movedim(0, 1))
    if torch.is_grad_enabled():
        return _EinFFT.apply(*arguments, shrinkage, native)
    return _forward(*arguments, shrinkage, native)[0]


def _real_form(weight: Tensor) -> Tensor:
    """Return (4, 2 S, 2 S) for a complex weight (2, 4, S, S)."""
    real, imag = weight
    return torch.cat([torch.cat([real, imag], dim=-1), torch.cat([-imag, real], dim=-1)], dim=-2)


def _forward(
    x: Tensor, matrix: Tensor, k1: Tensor, c1: Tensor, k2: Tensor, c2: Tensor, shrinkage: float, native: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y (B, L, D) and the layers' inputs and last outputs (4, B L, 2 S) before the softshrink."""
    full = spectrum_native(x, matrix, None, 0.0) if native else spectrum(x, matrix)
    hidden = F.relu(torch.baddbmm(c1.flatten(1).unsqueeze(1), full, k1), inplace=True)
    result = torch.baddbmm(c2.flatten(1).unsqueeze(1), hidden, k2)
    y = signal_native(result, matrix, shrinkage) if native else signal(F.softshrink(result, shrinkage), matrix)
    return y, full, hidden, result


class _EinFFT(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        matrix: Tensor,
        k1: Tensor,
        c1: Tensor,
        k2: Tensor,
        c2: Tensor,
        shrinkage: float,
        native: bool,
    ) -> Tensor:
        y, *kept = _forward(x, matrix, k1, c1, k2, c2, shrinkage, native)
        ctx.save_for_backward(matrix, k1, k2, *kept)
        ctx.shrinkage, ctx.native = shrinkage, native
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # A compiled backward is traced under the autocast of its forward.
        with torch.autocast(grad.device.type, enabled=False):
            return _EinFFT._gradients(ctx, grad)

    @staticmethod
    def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        matrix, k1, k2, full, hidden, result = ctx.saved_tensors
        if ctx.native:
            grad_result = spectrum_native(grad.contiguous(), matrix, result, ctx.shrinkage)
        else:
            grad_result = spectrum(grad, matrix) * (result.abs() > ctx.shrinkage)
        grad_k2, grad_c2 = hidden.transpose(1, 2) @ grad_result, grad_result.sum(1)
        grad_hidden = torch.ops.aten.threshold_backward(grad_result @ k2.transpose(1, 2), hidden, 0)
        grad_k1, grad_c1 = full.transpose(1, 2) @ grad_hidden, grad_hidden.sum(1)
        grad_full = grad_hidden @ k1.transpose(1, 2)
        grad_x = signal_native(grad_full, matrix, 0.0) if ctx.native else signal(grad_full, matrix)
        parts = grad_c1.unflatten(1, (2, -1)), grad_c2.unflatten(1, (2, -1))  # (4, 2, S)
        return grad_x, None, grad_k1, parts[0], grad_k2, parts[1], None, None
