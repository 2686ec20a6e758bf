"""The random part of the augmentation: what to do to one crop, drawn before any pixel is touched.

Apart from the pixels, so that another engine can render the same draws and a test can look at them. The distributions
are those of torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter, RandomGrayscale, GaussianBlur and
RandomSolarize, and for pathology's own those of RandomVerticalFlip, quarter turns, and gains and biases of stains (HED
jitter: Tellez et al. 2018, doi 10.1109/TMI.2018.2820199).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from dinov2.utils.schema import CropsSection, HedJitterSection, JitterSection

JitterOp = Literal["brightness", "contrast", "saturation", "hue"]

BOX_TRIES = 10
LOG_RATIO = math.log(4 / 3)  # aspect ratios 3/4 .. 4/3
# The most draws a crop can use: 2 a try and 2 for the place of its box, 1 flip, 9 jitter, 1 grey, 2 blur, 1 solarize.
# They are taken at once: a call into torch for each would cost more than the pixels of a small crop.
MAX_DRAWS = 2 * BOX_TRIES + 2 + 14
# 1 vertical flip, 2 quarter turns, 1 + 3 + 3 stains; apart from the others, which are the same with and without them.
PATHOLOGY_DRAWS = 10

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class StainParams:
    """Jitter of the stains haematoxylin, eosin and DAB: their amounts, in optical density, times `gain` plus `bias`."""

    gain: Triple
    bias: Triple


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
    vertical_flip: bool = False
    quarter_turns: int = 0  # counter-clockwise, 0 .. 3, after the flips
    stain: StainParams | None = None  # before the jitter; None: unchanged


def draw_crops(crops: CropsSection, height: int, width: int) -> list[CropParams]:
    """Draw all crops of one tile from torch's CPU RNG.

    The draws do not depend on which augmentations are on, so switching one on leaves the others as they were.

    Args:
        crops: the configuration.
        height: tile height, px.
        width: tile width, px.

    Returns:
        The two global crops, then `crops.local_crops_number` local ones.
    """
    n_crops = 2 + crops.local_crops_number
    uniforms = torch.rand(n_crops, MAX_DRAWS, dtype=torch.float64).tolist()
    more = torch.rand(n_crops, PATHOLOGY_DRAWS, dtype=torch.float64).tolist()
    return [
        _draw_crop(crops, min(number, 2), height, width, iter(row), iter(extra))
        for number, (row, extra) in enumerate(zip(uniforms, more, strict=True))
    ]


def draw_jpeg_quality(crops: CropsSection) -> int | None:
    """Draw the quality at which the whole tile is compressed again, from torch's CPU RNG; None: it is not."""
    low, high = crops.jpeg.quality
    applied, quality = torch.rand(2, dtype=torch.float64).tolist()
    return low + int(quality * (high - low + 1)) if applied < crops.jpeg.p else None


def _draw_crop(
    crops: CropsSection, kind: int, height: int, width: int, draws: Iterator[float], more: Iterator[float]
) -> CropParams:
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
        vertical_flip=next(more) < crops.vertical_flip_p,
        quarter_turns=_draw_turns(crops.rotate90_p, more),
        stain=_draw_stain(crops.hed_jitter, more),
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


def _draw_turns(probability: float, draws: Iterator[float]) -> int:
    """A quarter, half or three-quarter turn, equally likely, with `probability`; else none."""
    turned, which = next(draws), next(draws)
    return 1 + int(3 * which) if turned < probability else 0


def _draw_stain(jitter: HedJitterSection, draws: Iterator[float]) -> StainParams | None:
    """Gains uniform in 1 - sigma .. 1 + sigma and biases in -bias .. bias for each stain, with probability p."""
    if next(draws) >= jitter.p:
        return None
    gains = [_between((1 - sigma, 1 + sigma), next(draws)) for sigma in jitter.sigma]
    biases = [_between((-bias, bias), next(draws)) for bias in jitter.bias]
    return StainParams((gains[0], gains[1], gains[2]), (biases[0], biases[1], biases[2]))


def _factors(jitter: JitterSection) -> list[tuple[JitterOp, float]]:
    return [("brightness", jitter.brightness), ("contrast", jitter.contrast), ("saturation", jitter.saturation)]


def _between(bounds: tuple[float, float], uniform: float) -> float:
    return bounds[0] + uniform * (bounds[1] - bounds[0])
