"""Which backend of state-space duality can run where, in the order of preference."""

import importlib.util

import torch

from dinov2.ops.dispatch import Backend, register_backends
from dinov2.ops.ssd.vendor import why_not


def _triton(device: str, dtype: torch.dtype, states: int) -> str | None:
    return _on_cuda(device, dtype) or (
        None if importlib.util.find_spec("triton") else "the package triton is not installed"
    )


def _vendor(device: str, dtype: torch.dtype, states: int) -> str | None:
    return _on_cuda(device, dtype) or why_not()


def _on_cuda(device: str, dtype: torch.dtype) -> str | None:
    if device != "cuda":
        return "it needs a CUDA device"
    return f"it computes in float32, the inputs are {dtype}" if dtype == torch.float64 else None


def _anywhere(device: str, dtype: torch.dtype, states: int) -> None:
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
