"""Which backend of state-space duality can run where, in the order of preference."""

import importlib.util

import torch

from dinov2.ops.dispatch import Backend, register_backends
from dinov2.ops.ssd.vendor import why_not

# The longest sides of a head's state, channels by states or the reverse: in float32 the backward kernel then fills the
# shared memory that smaller GPUs have for a block, 99 KiB.
TRITON_SIDES = (128, 64)


def _triton(device: str, dtype: torch.dtype, states: int, channels: int = 64) -> str | None:
    refusal = _on_cuda(device, dtype)
    if refusal is not None:
        return refusal
    longer, shorter = TRITON_SIDES
    if max(channels, states) > longer or min(channels, states) > shorter:
        rule = f"it takes up to {longer} channels x {shorter} states a head, or the reverse"
        return f"{rule}; these are {channels} x {states}"
    return None if importlib.util.find_spec("triton") else "the package triton is not installed"


def _vendor(device: str, dtype: torch.dtype, states: int, channels: int = 64) -> str | None:
    return _on_cuda(device, dtype) or why_not()


def _on_cuda(device: str, dtype: torch.dtype) -> str | None:
    if device != "cuda":
        return "it needs a CUDA device"
    return f"it computes in float32, the inputs are {dtype}" if dtype == torch.float64 else None


def _anywhere(device: str, dtype: torch.dtype, states: int, channels: int = 64) -> None:
    return None


register_backends(
    "ssd",
    (
        Backend("triton", _triton),
        Backend("vendor", _vendor),
        Backend("cpu", _anywhere),
        Backend("quadratic", _anywhere),
        Backend("reference", _anywhere),
    ),
)
