"""The straightforward way to patch a slide, for comparison: OpenSlide, OpenCV, loops over all points and patches."""

from pathlib import Path

import cv2
import numpy as np
import openslide
from numpy.typing import NDArray

from eval.patching.presets import Preset


def loop_coordinates(path: Path, preset: Preset, side: int) -> NDArray[np.int64]:
    """Patches (N, 2) of level 0 by the contour test `four_pt`, one OpenCV call a point; holes are left out alike."""
    slide = openslide.OpenSlide(path)
    level = min(range(slide.level_count), key=lambda i: abs(np.log(slide.level_downsamples[i] / 64)))
    size = slide.level_dimensions[level]
    image = np.asarray(slide.read_region((0, 0), level, size).convert("RGB"))
    scale = np.array(slide.dimensions) / np.array(size)
    unit = 512**2 / scale.prod()
    saturation = cv2.medianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1], preset.mthresh)
    _, mask = cv2.threshold(saturation, preset.sthresh, 255, cv2.THRESH_BINARY)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((preset.close, preset.close), np.uint8))
    drawn, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    contours = [np.asarray(contour, dtype=np.int32) for contour in drawn]
    found = []
    for index in np.flatnonzero(hierarchy[0, :, 3] == -1):
        holes = sorted((contours[i] for i in np.flatnonzero(hierarchy[0, :, 3] == index)), key=cv2.contourArea)[::-1]
        if cv2.contourArea(contours[index]) - sum(map(cv2.contourArea, holes)) <= preset.a_t * unit:
            continue
        kept = [h for h in holes[: preset.max_n_holes] if cv2.contourArea(h) > preset.a_h * unit]
        outline, *inner = [(contour * scale).astype(np.int32) for contour in (contours[index], *kept)]
        left, top, width, height = cv2.boundingRect(outline)
        for x in range(left, left + width, side):
            for y in range(top, top + height, side):
                if _in(outline, x, y, side) and not any(_test(hole, x + side / 2, y + side / 2) > 0 for hole in inner):
                    found.append((x, y))
    return np.array(list(dict.fromkeys(found)), dtype=np.int64).reshape(-1, 2)


def loop_pixels(path: Path, coords: NDArray[np.int64], side: int) -> int:
    """Read all patches of level 0 in the order of their coordinates; return their number."""
    slide = openslide.OpenSlide(path)
    for x, y in coords:
        np.asarray(slide.read_region((int(x), int(y)), 0, (side, side)).convert("RGB"))
    return len(coords)


def _in(outline: NDArray[np.int32], x: int, y: int, side: int) -> bool:
    centre, shift = (x + side // 2, y + side // 2), side // 4
    return any(_test(outline, centre[0] + a * shift, centre[1] + b * shift) >= 0 for a in (-1, 1) for b in (-1, 1))


def _test(contour: NDArray[np.int32], x: float, y: float) -> float:
    return cv2.pointPolygonTest(contour, (float(x), float(y)), False)
