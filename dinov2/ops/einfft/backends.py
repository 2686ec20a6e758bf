"""Which backend of EinFFT can run where, in the order of preference."""

from pathlib import Path

import torch

from dinov2.ops import native
from dinov2.ops.dispatch import Backend, register_backends

NATIVE = "native"
SOURCE = Path(__file__).with_name("spectrum.c")


def _native(device: str, dtype: torch.dtype, states: int) -> str | None:
    if device != "cpu":
        return "it needs a CPU"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, the inputs are {dtype}"
    return native.why_not(SOURCE)


def _anywhere(device: str, dtype: torch.dtype, states: int) -> None:
    return None


register_backends("einfft", (Backend(NATIVE, _native), Backend("products", _anywhere), Backend("reference", _anywhere)))
