"""Working on a large matrix a few rows at a time."""

import torch

CHUNK = {"cpu": 1 << 18, "cuda": 1 << 27}  # elements: what stays in a CPU's cache; on a GPU few, large kernels


def row_chunks(rows: int, columns: int, device: torch.device) -> list[slice]:
    """Return slices that cut `rows` rows of `columns` elements into parts to work on one after the other."""
    step = max(1, CHUNK.get(device.type, CHUNK["cuda"]) // max(columns, 1))
    return [slice(first, first + step) for first in range(0, rows, step)]
