"""Which backend of the selective scan can run where, in the order of preference."""

import importlib.util
from functools import cache

import torch

from dinov2.ops import native
from dinov2.ops.dispatch import Backend, register_backends
from dinov2.ops.selective_scan.native import MAX_STATES, SOURCE

TRITON_STATES = 128  # of a channel, which a warp of the backward kernel can just hold in its registers
LOW_PRECISION = (torch.float32, torch.bfloat16, torch.float16)


def _triton(device: str, dtype: torch.dtype, states: int) -> str | None:
    if device != "cuda":
        return "it needs a CUDA device"
    if dtype not in LOW_PRECISION:
        return f"it computes in float32, the inputs are {dtype}"
    if states > TRITON_STATES:
        return f"it takes at most {TRITON_STATES} states, these are {states}"
    return _missing("triton")


def _vendor(device: str, dtype: torch.dtype, states: int) -> str | None:
    if device != "cuda":
        return "it needs a CUDA device"
    if dtype not in LOW_PRECISION or states > MAX_STATES:
        return f"it takes at most {MAX_STATES} states in float32, bfloat16 or float16"
    from dinov2.ops.selective_scan.vendor import why_not

    return why_not()


def _native(device: str, dtype: torch.dtype, states: int) -> str | None:
    if device != "cpu":
        return "it needs a CPU"
    if dtype not in LOW_PRECISION:
        return f"it computes in float32, the inputs are {dtype}"
    if states > MAX_STATES:
        return f"it takes at most {MAX_STATES} states"
    return native.why_not(SOURCE)


def _anywhere(device: str, dtype: torch.dtype, states: int) -> None:
    return None


@cache
def _missing(package: str) -> str | None:
    return None if importlib.util.find_spec(package) else f"the package {package} is not installed"


register_backends(
    "selective_scan",
    (
        Backend("triton", _triton),
        Backend("vendor", _vendor),
        Backend("native", _native),
        Backend("cpu", _anywhere),
        Backend("doubling", _anywhere),
        Backend("reference", _anywhere),
    ),
)
