"""Sequence operators with a choice of backend."""

from dinov2.ops.conv_silu import conv_silu
from dinov2.ops.einfft import einfft
from dinov2.ops.selective_scan import selective_scan
from dinov2.ops.ssd import ssd

__all__ = ["conv_silu", "einfft", "selective_scan", "ssd"]
