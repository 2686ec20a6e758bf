"""RandomResizedCrop as two matrix products, for all crops of many tiles at once.

Resizing a box with antialiased bicubic interpolation is linear in each axis, so a crop is `rows @ tile @ columns.T`
with one weight matrix an axis; a flip is the same matrix upside down. The weights are those of PyTorch's
`interpolate(mode="bicubic", antialias=True)`: Keys' kernel (1981) with a = -0.5, stretched when it shrinks, cut off at
the box and normalised.
"""

import torch
from torch import Tensor


def crop_tiles(tiles: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """Cut and resize n boxes of each tile.

    Args:
        tiles: (B, H, 3, W) float32 in [0, 1].
        boxes: (B, n, 4) float32, whole numbers: top, left, height, width in px.
        flips: (B, n, 2) bool: upside down, left to right.
        size: side S of the crops, px.

    Returns:
        (B * n, S, 3, S) float32 in [0, 1], the n crops of the first tile first.
    """
    (batch, height, _, width), count = tiles.shape, boxes.shape[1]
    top, left, box_height, box_width = boxes.unbind(-1)  # (B, n) each
    rows = bicubic_weights(top, box_height, flips[..., 0], height, size)  # (B, n, S, H)
    columns = bicubic_weights(left, box_width, flips[..., 1], width, size)  # (B, n, S, W)
    bands = torch.bmm(rows.view(batch, count * size, height), tiles.reshape(batch, height, 3 * width))
    bands = bands.view(batch * count, size * 3, width)
    crops = torch.bmm(bands, columns.view(batch * count, size, width).mT)  # (B * n, S * 3, S)
    return crops.view(batch * count, size, 3, size).clamp_(0, 1)  # bicubic overshoots


def bicubic_weights(start: Tensor, length: Tensor, flip: Tensor, full: int, size: int) -> Tensor:
    """Weights that turn `length` of `full` pixels from `start` on into `size`.

    Args:
        start: (...) float32, first pixel.
        length: (...) float32, pixels, at least 1.
        flip: (...) bool: in reverse order.
        full: pixels of the axis.
        size: results.

    Returns:
        (..., size, full) float32; each row sums to 1.
    """
    device = start.device
    outputs = torch.arange(size, device=device, dtype=torch.float32)
    outputs = torch.where(flip[..., None], size - 1 - outputs, outputs)  # (..., S)
    scale = (length / size)[..., None]  # (..., 1)
    # Positions count from the start of the box: small numbers keep their precision in float32.
    inputs = torch.arange(full, device=device, dtype=torch.float32) - start[..., None]  # (..., F)
    centres = (outputs + 0.5) * scale  # (..., S)
    stretch = scale.clamp(min=1)[..., None]  # (..., 1, 1)
    distance = ((inputs + 0.5)[..., None, :] - centres[..., None]).div_(stretch).abs_()  # (..., S, F)
    weights = _keys_kernel(distance)
    weights *= ((inputs >= 0) & (inputs < length[..., None]))[..., None, :]
    return weights.div_(weights.sum(-1, keepdim=True))


def _keys_kernel(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5 at distances x >= 0, zero from 2 on."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, far).mul_(x < 2)
