"""The selective scan of mamba-ssm, where its compiled extension is installed."""

import importlib
from functools import cache
from typing import Any

from torch import Tensor


@cache
def why_not() -> str | None:
    """Return why mamba-ssm's kernel cannot be used, or None. The package alone does not prove that it was compiled."""
    try:
        extension = importlib.import_module("selective_scan_cuda")
        _interface()
    except Exception as error:  # a missing package, or one built for another version of PyTorch or CUDA
        return f"mamba-ssm's compiled extension cannot be imported ({type(error).__name__}: {error})"
    missing = [symbol for symbol in ("fwd", "bwd") if not hasattr(extension, symbol)]
    return f"mamba-ssm's extension lacks {', '.join(missing)}" if missing else None


def scan_vendor(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """Return y (B, D, L); arguments as of `dinov2.ops.selective_scan`."""
    # The kernel takes one dtype for all inputs that vary in time, and float32 for the parameters.
    varying = [u, delta.to(u.dtype), A.float(), B.to(u.dtype), C.to(u.dtype)]
    return _interface()(
        *varying,
        D=None if D is None else D.float(),
        z=None if z is None else z.to(u.dtype),
        delta_bias=None if delta_bias is None else delta_bias.float(),
        delta_softplus=delta_softplus,
    )


@cache
def _interface() -> Any:
    return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
