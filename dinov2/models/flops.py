"""Operations of a backbone's forward pass, by fvcore, with the operators it does not know.

fvcore's convention holds: a fused multiply-add counts once, as in most papers' tables. Element-wise work, normalisation
and moving data count as nothing; attention, Fourier transforms and scans do count, whichever backend would run here.
"""

import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dinov2.ops.dispatch import forced

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its import compiles scripts in a way that newer releases of torch call outdated
    from fvcore.nn import FlopCountAnalysis

FREE = frozenset(
    f"aten::{name}"
    for name in """
    _upsample_bicubic2d_aa abs add add_ addcmul_ alias bitwise_not cat chunk clone complex contiguous copy_ cos cumsum
    detach div div_ empty_like eq exp exp_ expand expand_as flatten flip gelu imag index layer_norm masked_fill
    masked_fill_ mean movedim mul mul_ neg new_zeros numpy_T ones ones_like pad permute pow real relu
    repeat_interleave reshape rms_norm rsqrt rsub select sigmoid silu slice softplus softshrink split split_with_sizes
    squeeze stack sub sum t to transpose tril triu unbind unflatten unsqueeze upsample_bicubic2d view zeros zeros_like
    """.split()  # noqa: SIM905
)


# Backends made of operators that can be counted, and that state the work and not how it is done.
COUNTED = {"selective_scan": "cpu", "ssd": "cpu", "einfft": "reference", "conv_silu": "plain", "linear": "plain"}


class UncountedOperatorError(RuntimeError):
    """The model runs an operator that nobody has said how to count."""


def count_flops(model: nn.Module, *inputs: torch.Tensor) -> int:
    """Return the multiply-adds of `model(*inputs)` in evaluation mode.

    Raises:
        UncountedOperatorError: an operator has no handle (named).
    """
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    was_training = model.training
    model.eval()
    with warnings.catch_warnings(), torch.no_grad(), forced(**COUNTED):
        warnings.simplefilter("ignore")  # tracing warns of every shape check
        analysis = FlopCountAnalysis(model, inputs)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        for name in FREE:
            analysis.set_op_handle(name, _nothing)  # None would leave fvcore's own handles in place
        for name, handle in HANDLES.items():
            analysis.set_op_handle(name, handle)
        total = int(analysis.total())
        unknown = sorted(analysis.unsupported_ops())
    model.train(was_training)
    if unknown:
        raise UncountedOperatorError(f"no handle counts {', '.join(unknown)}; add one to {__name__}.HANDLES")
    return total


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _shape(value: Any) -> list[int]:
    return list(value.type().sizes())


def _nothing(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter()


def _attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Queries (..., N, d) with keys (..., M, d), then weights with values (..., M, e)."""
    query, key, value = (_shape(tensor) for tensor in inputs[:3])
    return Counter({"attention": math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])})


def _fft2(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """A complex transform of n points takes 5 n log2 n operations, two to a multiply-add; axes 1 and 2 here."""
    shape = _shape(inputs[0])
    points = shape[1] * shape[2]
    return Counter({"fft": round(math.prod(shape) * 2.5 * math.log2(points))})


def _selective_scan(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Per token, channel and state: delta A, decay h, + delta u B, C h; per token and channel: delta u."""
    length, batch, channels = _shape(inputs[0])
    states = _shape(inputs[2])[0]
    return Counter({"selective_scan": length * batch * channels * (4 * states + 1)})


HANDLES: dict[str, Callable[[list[Any], list[Any]], Counter[str]]] = {
    "aten::scaled_dot_product_attention": _attention,
    "aten::fft_fft2": _fft2,
    "aten::fft_ifft2": _fft2,
    "dinov2::selective_scan": _selective_scan,
}
