"""Losses are computed in float32, or in float64 where the model is in float64 (as in tests)."""

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return a floating-point tensor in float32, or unchanged when it is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
