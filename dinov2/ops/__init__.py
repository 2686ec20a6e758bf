"""Sequence operators with a choice of backend."""

from dinov2.ops.einfft import einfft
from dinov2.ops.selective_scan import selective_scan
from dinov2.ops.ssd import ssd

__all__ = ["einfft", "selective_scan", "ssd"]
