"""The grid against a loop over all its points with OpenCV's point test, as CLAM has it."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov2.slides.coordinates import Geometry
from eval.patching.grid import CONTOUR_TESTS, PointTest, tissue_grid


def blob(seed: int, radius: int, centre: int = 2000, points: int = 60) -> np.ndarray:
    """A star-shaped contour (P, 1, 2)."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, points))
    lengths = radius * rng.uniform(0.5, 1.0, points)
    xy = centre + np.stack([np.cos(angles), np.sin(angles)], axis=1) * lengths[:, None]
    return xy.round().astype(np.int32)[:, None]


def geometry(patch=64, downsample=1.0, overlap=0) -> Geometry:
    return Geometry(patch, overlap, 0.5, downsample, 0, downsample, native=True)


def clam_grid(contours, holes, size, side, step, contour_fn, use_padding):
    """The grid of whole numbers of level-0 px, point by point."""
    found = []
    for contour, inner in zip(contours, holes, strict=True):
        x0, y0, w, h = cv2.boundingRect(contour)
        x1, y1 = x0 + w, y0 + h
        if not use_padding:
            x1, y1 = min(x1, size[0] - side + 1), min(y1, size[1] - side + 1)
        for x in range(x0, x1, step):
            for y in range(y0, y1, step):
                cx, cy, shift = x + side // 2, y + side // 2, int(side // 2 * 0.5)
                corners = [(cx + a * shift, cy + b * shift) for a in (-1, 1) for b in (-1, 1)]
                points = {"basic": [(x, y)], "center": [(cx, cy)]}.get(contour_fn, corners)
                tests = [cv2.pointPolygonTest(contour, (float(a), float(b)), False) >= 0 for a, b in points]
                inside = all(tests) if contour_fn == "four_pt_hard" else any(tests)
                centre = (x + side / 2, y + side / 2)
                if inside and not any(cv2.pointPolygonTest(hole, centre, False) > 0 for hole in inner):
                    found.append((x, y))
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("contour_fn", CONTOUR_TESTS)
@pytest.mark.parametrize("use_padding", [True, False])
@pytest.mark.parametrize(("patch", "downsample", "overlap"), [(64, 1, 0), (64, 4, 0), (96, 1, 40), (1, 1, 0)])
def test_against_the_loop(contour_fn, use_padding, patch, downsample, overlap) -> None:
    radius = 40 if patch == 1 else 1500
    contours = [blob(1, radius), blob(2, radius // 2, centre=2600)]
    holes = [[blob(3, radius // 3)], []]
    size = (3000, 2900)
    side, step = patch * downsample, (patch - overlap) * downsample
    expected = clam_grid(contours, holes, size, side, step, contour_fn, use_padding)
    found = tissue_grid(contours, holes, size, geometry(patch, downsample, overlap), contour_fn, use_padding)
    assert len(expected) > 20
    assert [tuple(xy) for xy in found.tolist()] == expected


@settings(max_examples=40)
@given(st.integers(0, 1000), st.integers(3, 9000), st.booleans())
def test_points_against_opencv(seed, radius, halves) -> None:
    contour = blob(seed, radius)
    rng = np.random.default_rng(seed)
    near = contour.reshape(-1, 2) + rng.integers(-2, 3, (60, 2))
    points = np.concatenate([rng.integers(2000 - 2 * radius, 2000 + 2 * radius, (60, 2)), near, contour.reshape(-1, 2)])
    points = points + 0.5 * halves
    expected = [np.sign(cv2.pointPolygonTest(contour, (float(x), float(y)), False)) for x, y in points]
    np.testing.assert_array_equal(PointTest(contour)(points), expected)


def test_a_fractional_stride_does_not_drift() -> None:
    contour = np.array([[[0, 0]], [[20000, 0]], [[20000, 500]], [[0, 500]]], dtype=np.int32)
    coords = tissue_grid([contour], [[]], (20000, 500), geometry(100, 1.337), "center", True)
    columns = np.unique(coords[:, 0])
    np.testing.assert_array_equal(columns, np.round(np.arange(len(columns)) * 133.7))


def test_no_contour_gives_no_patch() -> None:
    assert tissue_grid([], [], (100, 100), geometry(), "four_pt", True).shape == (0, 2)


def test_patches_shared_by_two_contours_come_once() -> None:
    coords = tissue_grid([blob(1, 900)] * 2, [[], []], (4000, 4000), geometry(), "four_pt", True)
    assert len(coords) == len(np.unique(coords, axis=0)) > 100
