"""The short depthwise convolution along the tokens, with SiLU, that precedes every scan (arXiv 2312.00752).

Output t sees the inputs t - before to t - before + W - 1; those outside the sequence are 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dinov2.ops.checks import check_tensors
from dinov2.ops.conv_silu import backends as _backends  # noqa: F401  (registers them)
from dinov2.ops.conv_silu.native import conv_silu_native
from dinov2.ops.conv_silu.vendor import conv_silu_vendor
from dinov2.ops.dispatch import choose_backend

__all__ = ["conv_silu"]


def conv_silu(x: Tensor, weight: Tensor, bias: Tensor | None, before: int, backend: str = "auto") -> Tensor:
    """Return silu(conv(x)) (B, L, D) in the dtype of `x`, or of the running autocast.

    Args:
        x: tokens (B, L, D).
        weight: one filter a channel (D, 1, W), as of `nn.Conv1d(D, D, W, groups=D)`.
        bias: (D,) or None.
        before: inputs before its own that an output sees, 0 to W - 1; W - 1 is a causal convolution.
        backend: `auto`, `vendor` (causal-conv1d) on CUDA, `native` (C, compiled at first use) on a CPU, or `plain`.

    Raises:
        ValueError: a shape breaks the rules above (named), or the backend is unknown or cannot run.
    """
    width = weight.shape[-1]
    _check(x, weight, bias, before)
    device = x.device.type
    lowered = torch.is_autocast_enabled(device) and x.dtype != torch.float64  # autocast leaves float64 alone
    dtype = torch.get_autocast_dtype(device) if lowered else x.dtype
    name = choose_backend("conv_silu", backend, device, dtype, width, int(weight.shape[0]))
    if name == "native":
        y = conv_silu_native(x.float(), weight.float().squeeze(1), None if bias is None else bias.float(), before)
        return y.to(dtype)
    if name == "vendor":
        return conv_silu_vendor(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), before)
    padded = F.pad(x.transpose(1, 2), (before, width - 1 - before)).to(dtype)
    with torch.autocast(device, enabled=False):
        mixed = F.conv1d(padded, weight.to(dtype), None if bias is None else bias.to(dtype), groups=weight.shape[0])
        return F.silu(mixed).transpose(1, 2)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, before: int) -> None:
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(f"conv_silu: x has shape {tuple(x.shape)}; expected a non-empty (batch, length, channels)")
    channels, width = x.shape[-1], weight.shape[-1]
    if width == 0:
        raise ValueError(f"conv_silu: weight has shape {tuple(weight.shape)}; expected a positive width")
    check_tensors("conv_silu", ("x", x), [("weight", weight, (channels, 1, width)), ("bias", bias, (channels,))])
    if not 0 <= before < width:
        raise ValueError(f"conv_silu: before is {before}; a filter of width {width} needs 0 to {width - 1}")
