"""The convolution of causal-conv1d, where its compiled extension is installed."""

import importlib
from functools import cache
from typing import Any

import torch.nn.functional as F
from torch import Tensor


@cache
def why_not() -> str | None:
    """Return why causal-conv1d cannot be used, or None. The package alone does not prove that it was compiled."""
    try:
        importlib.import_module("causal_conv1d_cuda")
        _interface()
    except Exception as error:  # a missing package, or one built for another version of PyTorch or CUDA
        return f"causal-conv1d's compiled extension cannot be imported ({type(error).__name__}: {error})"
    return None


def conv_silu_vendor(x: Tensor, weight: Tensor, bias: Tensor | None, before: int) -> Tensor:
    """Return silu(conv(x)) (B, L, D) for x (B, L, D), weight (D, 1, W) and bias (D,), all of one dtype."""
    after = weight.shape[-1] - 1 - before  # a causal convolution of a sequence that goes on by as many zeros
    padded = F.pad(x, (0, 0, 0, after)).transpose(1, 2)  # (B, D, L + after), channels last in memory
    y = _interface()(padded, weight.squeeze(1), bias, activation="silu")
    return y[..., after:].transpose(1, 2)


@cache
def _interface() -> Any:
    return importlib.import_module("causal_conv1d").causal_conv1d_fn
