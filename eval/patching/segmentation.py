"""Tissue segmentation as CLAM does it (Lu et al. 2021, arXiv 2004.09666).

Saturation of the segmentation level, median filter, threshold, closing; outer contours with their holes; both filtered
by area. Unlike CLAM, a level that is too large for memory (slides of one level) is averaged down first.
"""

from collections import defaultdict
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dinov2.slides.errors import SlideError
from dinov2.slides.reader import SlideReader
from eval.patching.presets import Preset
from eval.patching.thumbnail import level_nearest, reduced_strips, reduction_for

Contour = NDArray[np.int32]  # (P, 1, 2) x and y in level-0 px, as OpenCV has them

AREA_UNIT = 512**2  # level-0 px
MAX_PIXELS = 2**26  # of the segmented image: one byte each is kept, and a strip of colours


@dataclass(frozen=True)
class Tissue:
    """Contours of tissue, the holes of each, and how they were found.

    Attributes:
        contours: outer contours in level-0 px.
        holes: as many lists of contours.
        level: the level that was segmented.
        downsample: level-0 px per px of the segmented image.
        reason: where there is no contour, why.
    """

    contours: list[Contour]
    holes: list[list[Contour]]
    level: int
    downsample: float
    reason: str = ""


def segment(slide: SlideReader, preset: Preset, max_pixels: int = MAX_PIXELS) -> Tissue:
    """Find the tissue of a slide.

    Raises:
        SlideError: the segmentation level does not exist, or pixels cannot be decoded.
    """
    level = preset.seg_level if preset.seg_level >= 0 else level_nearest(slide)
    if level >= len(slide.level_dimensions):
        raise SlideError(
            f"{slide.path}: seg_level {level} does not exist; there are {len(slide.level_dimensions)} levels. "
            "Use -1, which takes the level nearest to a downsample of 64."
        )
    saturation = _saturation(slide, level, max_pixels)
    size, whole = saturation.shape[::-1], slide.level_dimensions[0]
    scale = np.array([whole[0] / size[0], whole[1] / size[1]])
    mask = tissue_mask(saturation, preset)
    unit = AREA_UNIT / float(scale.prod())  # CLAM's unit of area, in px of the segmented image
    contours, holes = _filtered(mask, preset, unit)
    reason = "" if contours else _reason(saturation, mask, preset, unit)
    ids = _kept(len(contours), preset)
    if contours and not ids:
        reason = f"none of the {len(contours)} contours is left by keep_ids and exclude_ids"
    return Tissue(
        [_scaled(contours[i], scale) for i in ids],
        [[_scaled(hole, scale) for hole in holes[i]] for i in ids],
        level,
        float(scale.mean()),
        reason,
    )


def tissue_mask(saturation: NDArray[np.uint8], preset: Preset) -> NDArray[np.uint8]:
    """Threshold the filtered saturation (H, W) and close gaps; returns 0 and 255, (H, W)."""
    smooth = cv2.medianBlur(saturation, preset.mthresh)
    kind = cv2.THRESH_BINARY + (cv2.THRESH_OTSU if preset.use_otsu else 0)
    _, mask = cv2.threshold(smooth, 0 if preset.use_otsu else preset.sthresh, 255, kind)
    if preset.close > 0:
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((preset.close, preset.close), np.uint8))
    return np.asarray(mask, dtype=np.uint8)


def _saturation(slide: SlideReader, level: int, max_pixels: int) -> NDArray[np.uint8]:
    factor = reduction_for(slide.level_dimensions[level], max_pixels)
    strips = (cv2.cvtColor(strip, cv2.COLOR_RGB2HSV)[..., 1] for _, strip in reduced_strips(slide, level, factor))
    return np.concatenate(list(strips))  # (H, W)


def _filtered(mask: NDArray[np.uint8], preset: Preset, unit: float) -> tuple[list[Contour], list[list[Contour]]]:
    """Return the outer contours of at least a_t and the holes of each, in px of the segmented image."""
    found, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if hierarchy is None:
        return [], []
    contours = [np.asarray(contour, dtype=np.int32) for contour in found]
    children: dict[int, list[int]] = defaultdict(list)
    parents = hierarchy[0, :, 3]
    for child, parent in enumerate(parents.tolist()):
        children[parent].append(child)
    kept, kept_holes = [], []
    for index in children[-1]:
        holes = sorted((contours[child] for child in children[index]), key=cv2.contourArea, reverse=True)
        areas = [cv2.contourArea(hole) for hole in holes]
        area = cv2.contourArea(contours[index]) - sum(areas)
        if area > 0 and area > preset.a_t * unit:
            kept.append(contours[index])
            large = zip(holes[: preset.max_n_holes], areas, strict=False)
            kept_holes.append([hole for hole, hole_area in large if hole_area > preset.a_h * unit])
    return kept, kept_holes


def _kept(count: int, preset: Preset) -> list[int]:
    wanted = preset.keep_ids or range(count)
    return [i for i in sorted(set(wanted) - set(preset.exclude_ids)) if i < count]


def _scaled(contour: Contour, scale: NDArray[np.float64]) -> Contour:
    return (contour * scale).astype(np.int32)


def _reason(saturation: NDArray[np.uint8], mask: NDArray[np.uint8], preset: Preset, unit: float) -> str:
    """Why a mask has no contour that is large enough."""
    if not mask.any():
        return (
            f"no tissue: no px is more saturated than sthresh {preset.sthresh} after the median filter "
            f"(the largest saturation is {int(saturation.max())})"
        )
    largest = _filtered(mask, Preset(a_t=0), unit)[0]
    area = max((cv2.contourArea(contour) for contour in largest), default=0.0) / unit
    return (
        f"no tissue: the largest of {len(largest)} regions has {area:.3g} squares of 512 x 512 px, "
        f"not more than a_t {preset.a_t:g}"
    )
