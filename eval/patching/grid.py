"""Which patches of a grid lie in the tissue: CLAM's four contour tests, on many points at once.

| contour_fn | a patch is kept when this lies in the contour |
|---|---|
| four_pt | any of four points, half way between its centre and its corners |
| four_pt_hard | all four |
| center | its centre |
| basic | its top left corner |

A point on the contour counts as inside. A patch whose centre lies in a hole is left out. Each contour has a grid of its
own, which starts at its bounding box, as in CLAM.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dinov2.slides.coordinates import Geometry

CONTOUR_TESTS = ("four_pt", "four_pt_hard", "center", "basic")
_RASTER = 1024  # px, the longer side of the raster that spares most points the exact test
_BAND = 3  # cells at either side of the outline that are tested exactly
_MARGIN = _BAND + 2


def tissue_grid(
    contours: list[NDArray[np.int32]],
    holes: list[list[NDArray[np.int32]]],
    size: tuple[int, int],
    geometry: Geometry,
    contour_fn: str,
    use_padding: bool,
) -> NDArray[np.int64]:
    """Return the patches of all contours: (N, 2), top left corners in level-0 px, without repetition.

    Args:
        contours: (P, 1, 2) each, level-0 px.
        holes: as many lists of contours.
        size: (width, height) of the slide.
        geometry: size and resolution of the patches.
        contour_fn: see the module's table.
        use_padding: keep patches that reach over the slide's right and lower edge.
    """
    side = geometry.patch_size_level0
    stride = (geometry.patch_size - geometry.overlap) * geometry.downsample
    parts = [np.zeros((0, 2), dtype=np.int64)]
    for contour, inner in zip(contours, holes, strict=True):
        left, top, width, height = cv2.boundingRect(contour)
        right, bottom = left + width, top + height
        if not use_padding:
            right, bottom = min(right, size[0] - side + 1), min(bottom, size[1] - side + 1)
        candidates = _grid(left, right, top, bottom, stride)
        keep = _in_contour(candidates, contour, side, contour_fn)
        for hole in inner:
            keep &= PointTest(hole)(candidates + side / 2) <= 0
        parts.append(candidates[keep])
    coords = np.concatenate(parts)
    _, first = np.unique(coords, axis=0, return_index=True)
    return coords[np.sort(first)]


class PointTest:
    """Whether points lie in (1), on (0) or outside of (-1) a contour, equal to OpenCV's `pointPolygonTest` for each.

    Only points near the outline are tested by it; the others are looked up in a raster, which is made once.

    Args:
        contour: (P, 1, 2) int32.
    """

    def __init__(self, contour: NDArray[np.int32]) -> None:
        vertices = contour.reshape(-1, 2)
        self._contour = contour
        self._origin = vertices.min(axis=0)
        extent = vertices.max(axis=0) - self._origin
        self._cell = max(1.0, float(extent.max()) / _RASTER)
        drawn = np.round((vertices - self._origin) / self._cell).astype(np.int32) + _MARGIN
        width, height = (np.ceil(extent / self._cell).astype(int) + 2 * _MARGIN + 1).tolist()
        self._inside = cv2.fillPoly(np.zeros((height, width), np.uint8), [drawn], 1)
        self._band = cv2.polylines(np.zeros((height, width), np.uint8), [drawn], True, 1, thickness=2 * _BAND + 1)

    def __call__(self, points: NDArray[Any]) -> NDArray[np.int8]:
        """Test points (N, 2); returns (N,)."""
        cells = np.floor((points - self._origin) / self._cell).astype(np.int64) + _MARGIN  # (N, 2)
        height, width = self._inside.shape
        within = ((cells >= 0) & (cells < (width, height))).all(axis=1)
        result = np.full(len(points), -1, dtype=np.int8)
        x, y = cells[within].T
        result[within] = 2 * self._inside[y, x].astype(np.int8) - 1
        for index in np.flatnonzero(within)[self._band[y, x] > 0]:
            point = (float(points[index, 0]), float(points[index, 1]))
            result[index] = int(np.sign(cv2.pointPolygonTest(self._contour, point, False)))
        return result


def _grid(left: int, right: int, top: int, bottom: int, stride: float) -> NDArray[np.int64]:
    """Candidates (N, 2), column by column as in CLAM. Each is rounded by itself, so that the error does not add up."""
    columns, rows = (
        start + np.round(np.arange(max(0, int(np.ceil((end - start) / stride)))) * stride).astype(np.int64)
        for start, end in ((left, right), (top, bottom))
    )
    return np.stack([a.ravel() for a in np.meshgrid(columns, rows, indexing="ij")], axis=1)


def _in_contour(
    candidates: NDArray[np.int64], contour: NDArray[np.int32], side: int, contour_fn: str
) -> NDArray[np.bool_]:
    test = PointTest(contour)
    if contour_fn == "basic":
        return test(candidates) >= 0
    centre = candidates + side // 2
    shift = side // 2 // 2
    if contour_fn == "center" or shift == 0:
        return test(centre) >= 0
    corners = [test(centre + shift * np.array(sign)) >= 0 for sign in ((-1, -1), (1, 1), (1, -1), (-1, 1))]
    return np.all(corners, axis=0) if contour_fn == "four_pt_hard" else np.any(corners, axis=0)
