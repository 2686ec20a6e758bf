"""Working on a large matrix a few rows at a time."""

import torch
from torch import Tensor

CHUNK = {"cpu": 1 << 18, "cuda": 1 << 27}  # elements: what stays in a CPU's cache; on a GPU few, large kernels


def row_chunks(matrix: Tensor) -> list[slice]:
    """Return slices that cut the rows of a matrix (M, K) into parts to work on one after the other."""
    step = max(1, CHUNK.get(matrix.device.type, CHUNK["cuda"]) // max(matrix.shape[1], 1))
    return [slice(first, first + step) for first in range(0, matrix.shape[0], step)]


def empty_wide(matrix: Tensor) -> Tensor:
    """Return an uninitialised matrix of the same shape, in float32, or in float64 like the matrix."""
    return torch.empty_like(matrix, dtype=torch.promote_types(matrix.dtype, torch.float32), requires_grad=False)
