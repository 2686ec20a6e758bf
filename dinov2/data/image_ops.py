"""Pixel operations on batches of float images, equal to torchvision's float ones, each image with its own parameter.

Images are (R, H, 3, W) float32 in [0, 1]: channels lie between rows and columns, so that products with matrices from
either side see contiguous memory. A single planar image (3, H, W) is the same as (1, 1, 3, H * W). Parameters are
numbers or tensors of shape (R, 1, 1, 1). Operations may overwrite their argument; use what they return.
"""

import torch
from torch import Tensor

RED, GREEN, BLUE = 0.2989, 0.587, 0.114  # torchvision's luma weights


def luma(images: Tensor) -> Tensor:
    """Grey value of each pixel, (R, H, 1, W)."""
    red, green, blue = images.split(1, -2)
    return (red * RED).add_(green, alpha=GREEN).add_(blue, alpha=BLUE)


def grayscale(images: Tensor) -> Tensor:
    """Grey images with three equal channels."""
    return images.copy_(luma(images).expand_as(images))


def adjust_brightness(images: Tensor, factor: float | Tensor) -> Tensor:
    """Multiply by `factor` and clamp."""
    return images.mul_(factor).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: float | Tensor) -> Tensor:
    """Scale the distance to each image's mean grey by `factor` and clamp."""
    mean = luma(images).mean((1, 3), keepdim=True)  # (R, 1, 1, 1)
    return images.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: float | Tensor) -> Tensor:
    """Scale the distance to each pixel's grey by `factor` and clamp."""
    grey = luma(images).mul_(1 - factor)
    return images.mul_(factor).add_(grey).clamp_(0, 1)


def adjust_hue(images: Tensor, shift: float | Tensor) -> Tensor:
    """Turn the hue by `shift` of the circle (-0.5 .. 0.5), keeping HSV saturation and value.

    An HSV colour of value V, chroma C and hue h (in turns) has in the channel whose own hue is h_c (0, 1/3 or 2/3) the
    value V - C * clamp(6 d - 1, 0, 1), d being the distance of h and h_c around the circle: no cases by sextant.
    """
    red, green, blue = images.split(1, -2)  # (R, H, 1, W) each
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # Hue times 6 C; where two channels tie for the maximum both branches agree.
    hue = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4)),
    )
    # Grey pixels have chroma 0, so their hue, 0 / tiny, does not matter as long as it is finite.
    hue.div_(chroma.clamp(min=1e-12).mul_(6)).add_(shift)
    out = torch.empty_like(images)
    for number, channel in enumerate(out.split(1, -2)):
        turn = hue - number / 3
        distance = turn.sub_(turn.round()).abs_()  # 0 .. 1/2
        torch.addcmul(value, distance.sub_(1 / 6).clamp_(0, 1 / 6), chroma, value=-6, out=channel)
    return out


def solarize(images: Tensor, threshold: float = 128 / 255) -> Tensor:
    """Invert the values at or above the threshold."""
    return torch.where(images >= threshold, 1 - images, images)
