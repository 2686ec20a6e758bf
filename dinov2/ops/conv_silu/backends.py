"""Which backend of the convolution can run where, in the order of preference."""

import torch

from dinov2.ops import native
from dinov2.ops.conv_silu.native import MAX_WIDTH, SOURCE
from dinov2.ops.conv_silu.vendor import why_not
from dinov2.ops.dispatch import Backend, register_backends


def _vendor(device: str, dtype: torch.dtype, width: int, channels: int = 8) -> str | None:
    if device != "cuda":
        return "it needs a CUDA device"
    if not 2 <= width <= 4 or dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return "it takes widths of 2 to 4 in float32, bfloat16 or float16"
    if channels % 8:
        return f"its kernel for our layout takes multiples of 8 channels, these are {channels}"
    return why_not()


def _native(device: str, dtype: torch.dtype, width: int, channels: int = 8) -> str | None:
    if device != "cpu":
        return "it needs a CPU"
    if dtype == torch.float64:
        return f"it computes in float32, the inputs are {dtype}"
    if width > MAX_WIDTH:
        return f"it takes widths up to {MAX_WIDTH}"
    return native.why_not(SOURCE)


def _anywhere(device: str, dtype: torch.dtype, width: int, channels: int = 8) -> None:
    return None


register_backends(
    "conv_silu",
    (Backend("vendor", _vendor), Backend("native", _native), Backend("plain", _anywhere)),
)
