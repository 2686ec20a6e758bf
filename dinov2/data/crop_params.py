"""The random part of the augmentation: what to do to one crop, drawn before any pixel is touched.

Apart from the pixels, so that another engine can render the same draws and a test can look at them. The distributions
are those of torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter, RandomGrayscale, GaussianBlur and
RandomSolarize.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from dinov2.utils.schema import CropsSection, JitterSection

JitterOp = Literal["brightness", "contrast", "saturation", "hue"]

BOX_TRIES = 10
LOG_RATIO = math.log(4 / 3)  # aspect ratios 3/4 .. 4/3
# The most draws a crop can use: 2 a try and 2 for the place of its box, 1 flip, 9 jitter, 1 grey, 2 blur, 1 solarize.
# They are taken at once: a call into torch for each would cost more than the pixels of a small crop.
MAX_DRAWS = 2 * BOX_TRIES + 2 + 14


@dataclass(frozen=True)
class CropParams:
    """One crop. The box is in pixels of the tile; jitter operations come in the order of application."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    jitter: tuple[tuple[JitterOp, float], ...]  # empty: none
    grayscale: bool
    blur_sigma: float | None  # pixels of the finished crop; None: no blur
    solarize: bool


def draw_crops(crops: CropsSection, height: int, width: int) -> list[CropParams]:
    """Draw all crops of one tile from torch's CPU RNG.

    Args:
        crops: the configuration.
        height: tile height, px.
        width: tile width, px.

    Returns:
        The two global crops, then `crops.local_crops_number` local ones.
    """
    uniforms = torch.rand(2 + crops.local_crops_number, MAX_DRAWS, dtype=torch.float64).tolist()
    return [_draw_crop(crops, min(number, 2), height, width, iter(row)) for number, row in enumerate(uniforms)]


def _draw_crop(crops: CropsSection, kind: int, height: int, width: int, draws: Iterator[float]) -> CropParams:
    """One crop; kind is 0 or 1 for the global crops and 2 for a local one."""
    scale = crops.local_crops_scale if kind == 2 else crops.global_crops_scale
    top, left, box_height, box_width = _draw_box(scale, height, width, draws)
    return CropParams(
        top=top,
        left=left,
        height=box_height,
        width=box_width,
        flip=next(draws) < crops.horizontal_flip_p,
        jitter=_draw_jitter(crops.color_jitter, draws),
        grayscale=next(draws) < crops.grayscale_p,
        blur_sigma=_between(crops.blur_sigma, next(draws)) if next(draws) < crops.blur_p[kind] else None,
        solarize=next(draws) < crops.solarize_p[kind],
    )


def _draw_box(scale: tuple[float, float], height: int, width: int, draws: Iterator[float]) -> tuple[int, int, int, int]:
    """Top, left, height, width of a box of a random share of the area and a random aspect ratio."""
    for _ in range(BOX_TRIES):
        area = height * width * _between(scale, next(draws))
        ratio = math.exp(_between((-LOG_RATIO, LOG_RATIO), next(draws)))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(next(draws) * (height - box_height + 1))
            left = int(next(draws) * (width - box_width + 1))
            return top, left, box_height, box_width
    # No box fits a very long tile: its centre, as large as the aspect ratios allow.
    box_height = min(height, round(width * math.exp(LOG_RATIO)))
    box_width = min(width, round(height * math.exp(LOG_RATIO)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _draw_jitter(jitter: JitterSection, draws: Iterator[float]) -> tuple[tuple[JitterOp, float], ...]:
    """The jitter operations of non-zero strength in random order, each with its factor; none with probability 1 - p."""
    if next(draws) >= jitter.p:
        return ()
    ranges: list[tuple[JitterOp, tuple[float, float]]] = [
        (op, (max(0.0, 1 - strength), 1 + strength)) for op, strength in _factors(jitter) if strength > 0
    ]
    if jitter.hue > 0:
        ranges.append(("hue", (-jitter.hue, jitter.hue)))
    keyed = sorted((next(draws), op, _between(bounds, next(draws))) for op, bounds in ranges)
    return tuple((op, factor) for _, op, factor in keyed)


def _factors(jitter: JitterSection) -> list[tuple[JitterOp, float]]:
    return [("brightness", jitter.brightness), ("contrast", jitter.contrast), ("saturation", jitter.saturation)]


def _between(bounds: tuple[float, float], uniform: float) -> float:
    return bounds[0] + uniform * (bounds[1] - bounds[0])
