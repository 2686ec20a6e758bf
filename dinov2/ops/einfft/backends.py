"""Which backend of EinFFT can run where, in the order of preference."""

from pathlib import Path

import torch

from dinov2.ops import native
from dinov2.ops.dispatch import Backend, register_backends

NATIVE = "native"
# The transform as a matrix product grows with the square of the length: from about here on torch.fft is faster (1,025
# tokens: 0.8x in the forward, 1.2x with the backward; 4,097: 0.6x in both).
LONGEST = 1100
SOURCE = Path(__file__).with_name("spectrum.c")


def _too_long(length: int) -> str | None:
    return f"a Fourier transform is faster than a matrix product for {length} tokens" if length > LONGEST else None


def _native(device: str, dtype: torch.dtype, length: int) -> str | None:
    if device != "cpu":
        return "it needs a CPU"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, the inputs are {dtype}"
    return _too_long(length) or native.why_not(SOURCE)


def _products(device: str, dtype: torch.dtype, length: int) -> str | None:
    return _too_long(length)


def _anywhere(device: str, dtype: torch.dtype, length: int) -> None:
    return None


register_backends("einfft", (Backend(NATIVE, _native), Backend("products", _products), Backend("reference", _anywhere)))
