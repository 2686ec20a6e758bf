"""RandomResizedCrop as two matrix products, for all crops of many tiles at once.

Resizing a box with antialiased bicubic interpolation is linear in each axis, so a crop is `rows @ tile @ columns.T`
with one weight matrix an axis; a flip is the same matrix upside down. The weights are those of PyTorch's
`interpolate(mode="bicubic", antialias=True)`: Keys' kernel (1981) with a = -0.5, stretched when it shrinks, cut off at
the box and normalised.
"""

import math

import torch
from torch import Tensor

REACH = 2  # of Keys' kernel, px of the coarser of both images


def crop_tiles(tiles: Tensor, boxes: Tensor, flips: Tensor, size: int, longest: int) -> Tensor:
    """Cut and resize n boxes of each tile.

    Args:
        tiles: (B, H, 3, W) float32 in [0, 1].
        boxes: (B, n, 4) float32, whole numbers: top, left, height, width in px.
        flips: (B, n, 2) bool: upside down, left to right.
        size: side S of the crops, px.
        longest: no side of a box is longer, px; the host has to know it.

    Returns:
        (B * n, S, 3, S) float32 in [0, 1], the n crops of the first tile first.
    """
    (batch, height, _, width), count = tiles.shape, boxes.shape[1]
    top, left, box_height, box_width = boxes.unbind(-1)  # (B, n) each
    rows = bicubic_weights(top, box_height, flips[..., 0], height, size, longest)  # (B, n, S, H)
    columns = bicubic_weights(left, box_width, flips[..., 1], width, size, longest)  # (B, n, S, W)
    bands = torch.bmm(rows.view(batch, count * size, height), tiles.reshape(batch, height, 3 * width))
    bands = bands.view(batch * count, size * 3, width)
    crops = torch.bmm(bands, columns.view(batch * count, size, width).mT)  # (B * n, S * 3, S)
    return crops.view(batch * count, size, 3, size).clamp_(0, 1)  # bicubic overshoots


def bicubic_weights(start: Tensor, length: Tensor, flip: Tensor, full: int, size: int, longest: int) -> Tensor:
    """Weights that turn `length` of `full` pixels from `start` on into `size`.

    Args:
        start: (...) float32, first pixel.
        length: (...) float32, pixels, at least 1 and at most `longest`.
        flip: (...) bool: in reverse order.
        full: pixels of the axis.
        size: results.
        longest: a bound on `length`.

    Returns:
        (..., size, full) float32; each row sums to 1.
    """
    outputs = torch.arange(size, device=start.device, dtype=torch.float32)
    outputs = torch.where(flip[..., None], size - 1 - outputs, outputs)  # (..., S)
    scale = (length / size)[..., None]  # (..., 1)
    stretch = scale.clamp(min=1)
    # Positions count from the start of the box: small numbers keep their precision in float32.
    centres = (outputs + 0.5) * scale  # (..., S)
    taps = min(math.ceil(2 * REACH * max(longest / size, 1)) + 1, full)
    first = (torch.floor(centres - REACH * stretch + 0.5) + start[..., None]).clamp(0, full - taps)  # (..., S)
    places = first[..., None] + torch.arange(taps, device=start.device)  # (..., S, T)
    inside = places - start[..., None, None]
    weights = _keys_kernel((inside + 0.5 - centres[..., None]).div_(stretch[..., None]).abs_())
    weights *= (inside >= 0) & (inside < length[..., None, None])
    weights /= weights.sum(-1, keepdim=True)
    return weights.new_zeros((*centres.shape, full)).scatter_(-1, places.long(), weights)


def _keys_kernel(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5 at distances x >= 0, zero from REACH on."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, far).mul_(x < REACH)
