"""Learned position embeddings at any grid."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def interpolate_pos_embed(pos_embed: Tensor, rows: int, columns: int, antialias: bool, offset: float) -> Tensor:
    """Resize a position embedding (1, 1 + M * M, D) to (1, 1 + rows * columns, D) by bicubic interpolation in float32.

    `offset` is DINOv2's: added to the target grid before dividing by M, it enters through the scale factor; 0 resizes
    to the exact grid. The CLS entry, the first, is kept.
    """
    side = math.isqrt(pos_embed.shape[1] - 1)
    if (rows, columns) == (side, side):
        return pos_embed
    dim = pos_embed.shape[-1]
    grid = pos_embed[:, 1:].float().reshape(1, side, side, dim).permute(0, 3, 1, 2)  # (1, D, M, M)
    if offset:
        scale = ((rows + offset) / side, (columns + offset) / side)
        resized = F.interpolate(grid, scale_factor=scale, mode="bicubic", antialias=antialias)
    else:
        resized = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=antialias)
    if tuple(resized.shape[-2:]) != (rows, columns):
        raise ValueError(
            f"interpolate_offset={offset} turns the {rows} x {columns} grid into {tuple(resized.shape[-2:])}; use 0"
        )
    patches = resized.permute(0, 2, 3, 1).reshape(1, rows * columns, dim)
    return torch.cat([pos_embed[:, :1], patches.to(pos_embed.dtype)], dim=1)
