"""State-space duality of mamba-ssm, whose kernels are Triton's: nothing compiled has to be there."""

import importlib
from functools import cache
from typing import Any

from torch import Tensor


@cache
def why_not() -> str | None:
    """Return why mamba-ssm's function cannot be used, or None."""
    try:
        _function()
    except Exception as error:  # a missing package, or one that cannot be imported with this PyTorch or Triton
        return f"mamba-ssm's ssd_combined cannot be imported ({type(error).__name__}: {error})"
    return None


def ssd_vendor(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int) -> Tensor:
    """Return y (B, L, H, P) without skip; arguments as of `dinov2.ops.ssd`."""
    return _function()(x, dt, A, B, C, chunk_size)


@cache
def _function() -> Any:
    return importlib.import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
