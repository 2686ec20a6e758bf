"""EinFFT, the channel mixer of SiMBA (arXiv 2403.15360): a complex two-layer network in the frequency domain.

X = fft2(x) over (token, block),   Z = softshrink(relu(X W1 + b1) W2 + b2),   y = Re ifft2(Z)

where W are complex and block-diagonal, and relu and softshrink act on real and imaginary parts alike.
"""

import torch
from torch import Tensor

from dinov2.ops.checks import Rule, check_tensors
from dinov2.ops.dispatch import choose_backend
from dinov2.ops.einfft import backends as _backends  # noqa: F401  (registers them)
from dinov2.ops.einfft.backends import NATIVE
from dinov2.ops.einfft.network import einfft_products
from dinov2.ops.einfft.reference import einfft_reference

__all__ = ["BLOCKS", "einfft"]

BLOCKS = 4


def einfft(
    x: Tensor,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor,
    bias_2: Tensor,
    shrinkage: float = 0.01,
    backend: str = "auto",
) -> Tensor:
    """Mix `x` (B, L, D) over tokens and over four blocks of channels; returns (B, L, D) in its dtype.

    Args:
        x: tokens (B, L, D), D = 4 S.
        weight_1, weight_2: complex weights of both layers, real and imaginary parts (2, 4, S, S).
        bias_1, bias_2: complex biases (2, 4, S).
        shrinkage: threshold of the softshrink after the second layer.
        backend: `auto`, `native` (C around matrix products, compiled at first use, on a CPU), `products` (matrix
            products in plain PyTorch, anywhere), both up to 1,100 tokens, or `reference` (torch.fft).

    The computation runs in float32, or in float64 when `x` is float64.

    Raises:
        ValueError: a shape or dtype breaks the rules above (named), or the backend is unknown or cannot run.
    """
    _check(x, {"weight_1": weight_1, "bias_1": bias_1, "weight_2": weight_2, "bias_2": bias_2}, shrinkage)
    length = 0 if torch.compiler.is_compiling() else int(x.shape[1])  # a compiled graph may serve any length
    name = choose_backend("einfft", backend, x.device.type, x.dtype, length)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        tokens, w1, b1, w2, b2 = (tensor.to(dtype) for tensor in (x, weight_1, bias_1, weight_2, bias_2))
        if name == "reference":
            y = einfft_reference(tokens, w1, b1, w2, b2, shrinkage)
        else:
            y = einfft_products(tokens, w1, b1, w2, b2, shrinkage, native=name == NATIVE)
    return y.to(x.dtype)


def _check(x: Tensor, parameters: dict[str, Tensor], shrinkage: float) -> None:
    if not shrinkage >= 0:
        raise ValueError(f"einfft: shrinkage is {shrinkage}; expected 0 or more")
    if x.ndim != 3 or 0 in x.shape or x.shape[-1] % BLOCKS:
        raise ValueError(
            f"einfft: x has shape {tuple(x.shape)}; expected a non-empty (batch, length, multiple of {BLOCKS})"
        )
    size = x.shape[-1] // BLOCKS
    weight, bias = (2, BLOCKS, size, size), (2, BLOCKS, size)
    rules: list[Rule] = [
        (name, tensor, weight if name.startswith("weight") else bias) for name, tensor in parameters.items()
    ]
    check_tensors("einfft", ("x", x), rules)
