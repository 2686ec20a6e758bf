"""Segmentation: planted tissue is found, planted holes are not, and the area filters count in CLAM's unit."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dinov2.slides import SlideError, open_slide
from dinov2.slides.reader import paste_region
from eval.patching.presets import Preset, load_preset
from eval.patching.segmentation import segment, tissue_mask
from eval.patching.thumbnail import level_nearest, reduced_image, reduction_for

SMALL = Preset(mthresh=5, a_t=0.01, a_h=0.01, max_n_holes=8)


def filled(tissue, size):
    """The mask (H, W) that contours and holes describe."""
    mask = np.zeros((size[1], size[0]), np.uint8)
    for contour, holes in zip(tissue.contours, tissue.holes, strict=True):
        cv2.drawContours(mask, [contour], -1, 1, cv2.FILLED)
        for hole in holes:
            cv2.drawContours(mask, [hole], -1, 0, cv2.FILLED)
    return mask.astype(bool)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.fixture
def planted(draw_tissue):
    size = (1600, 1200)
    rectangles, holes = [(100, 100, 900, 1000), (1100, 300, 1500, 800)], [(300, 300, 600, 650)]
    truth = np.zeros((size[1], size[0]), bool)
    for x0, y0, x1, y1 in rectangles:
        truth[y0:y1, x0:x1] = True
    for x0, y0, x1, y1 in holes:
        truth[y0:y1, x0:x1] = False
    return draw_tissue(size, rectangles, holes), truth


@pytest.mark.parametrize("factors", [(1,), (1, 4), (1, 2, 5)])
@pytest.mark.parametrize("use_otsu", [False, True])
def test_planted_tissue(planted, tmp_path, write_slide, factors, use_otsu) -> None:
    image, truth = planted
    preset = Preset(mthresh=5, a_t=0.1, a_h=0.05, use_otsu=use_otsu)
    with open_slide(write_slide(tmp_path / "a.tif", image, factors)) as slide:
        tissue = segment(slide, preset)
    assert (tissue.level, tissue.downsample) == (len(factors) - 1, factors[-1])
    assert len(tissue.contours) == 2
    assert sorted(map(len, tissue.holes)) == [0, 1]
    mask = filled(tissue, image.shape[1::-1])
    assert iou(mask, truth) > 0.95
    assert not mask[350:600, 350:550].any()


def test_a_large_level_is_reduced_without_losing_tissue(planted, tmp_path, write_slide) -> None:
    image, truth = planted
    with open_slide(write_slide(tmp_path / "a.tif", image)) as slide:
        tissue = segment(slide, Preset(mthresh=5, a_t=0.1, a_h=0.05), max_pixels=200_000)
        assert tissue.downsample == 4
        small = reduced_image(slide, 0, 200_000)
    assert iou(filled(tissue, image.shape[1::-1]), truth) > 0.95
    blocks = image.reshape(300, 4, 400, 4, 3).mean(axis=(1, 3))
    assert np.abs(small - blocks).max() <= 0.51


def test_areas_are_counted_in_squares_of_512_level_0_px(tmp_path, write_slide, draw_tissue) -> None:
    """The same rectangle of 256 x 512 px, half a unit, whatever the level that is segmented."""
    image = draw_tissue((1200, 1000), [(200, 200, 456, 712)])
    for factors in ((1,), (1, 4)):
        with open_slide(write_slide(tmp_path / f"{len(factors)}.tif", image, factors)) as slide:
            assert len(segment(slide, Preset(mthresh=1, close=0, a_t=0.45)).contours) == 1
            empty = segment(slide, Preset(mthresh=1, close=0, a_t=0.55))
            assert empty.contours == []
            area = float(empty.reason.split("regions has ")[1].split()[0])
            assert area == pytest.approx(0.5, abs=0.02)
            assert "not more than a_t 0.55" in empty.reason


def test_holes_are_filtered_by_area_and_number(tmp_path, write_slide, draw_tissue) -> None:
    holes = [(200, 200, 300, 300), (400, 200, 460, 260), (600, 200, 630, 230)]
    image = draw_tissue((1000, 600), [(100, 100, 900, 500)], holes)
    areas = [(x1 - x0) * (y1 - y0) / 512**2 for x0, y0, x1, y1 in holes]
    with open_slide(write_slide(tmp_path / "a.tif", image)) as slide:

        def count(a_h: float, max_n_holes: int = 8) -> int:
            preset = Preset(mthresh=1, close=0, a_t=0.1, a_h=a_h, max_n_holes=max_n_holes)
            return len(segment(slide, preset).holes[0])

        assert [count(a * 0.9) for a in areas] == [1, 2, 3]
        assert count(0, max_n_holes=2) == 2
        largest = segment(slide, Preset(mthresh=1, close=0, a_t=0.1, a_h=0, max_n_holes=1)).holes[0][0]
        assert cv2.boundingRect(largest)[:2] == (199, 199)


def test_contours_by_number(planted, tmp_path, write_slide) -> None:
    image, _ = planted
    with open_slide(write_slide(tmp_path / "a.tif", image)) as slide:
        both = segment(slide, SMALL).contours
        for keep, exclude, expected in (((1,), (), [1]), ((), (1,), [0]), ((0, 1), (0,), [1]), ((0, 7), (), [0])):
            kept = segment(slide, Preset(mthresh=5, a_t=0.01, keep_ids=keep, exclude_ids=exclude)).contours
            assert [cv2.boundingRect(c) for c in kept] == [cv2.boundingRect(both[i]) for i in expected]
        none = segment(slide, Preset(mthresh=5, a_t=0.01, keep_ids=(9,)))
        assert "none of the 2 contours is left by keep_ids and exclude_ids" in none.reason


def test_a_blank_slide_says_why(tmp_path) -> None:
    Image.new("RGB", (300, 200), (240, 236, 240)).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png") as slide:
        tissue = segment(slide, Preset())
    assert tissue.contours == []
    assert "no px is more saturated than sthresh 15" in tissue.reason
    assert "largest saturation is 4" in tissue.reason


def test_a_level_that_does_not_exist(tmp_path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png") as slide, pytest.raises(SlideError, match="seg_level 2 does not exist"):
        segment(slide, Preset(seg_level=2))


def test_the_mask_against_its_definition() -> None:
    """Median, threshold and closing by sorting windows in NumPy."""
    rng = np.random.default_rng(0)
    saturation = cv2.GaussianBlur(rng.integers(0, 60, (40, 50), dtype=np.uint8), (0, 0), 2)
    saturation = ((saturation.astype(int) - 25) * 8).clip(0, 60).astype(np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(saturation, 1, mode="edge"), (3, 3))
    above = np.median(windows, axis=(2, 3)) > 20
    wide = np.lib.stride_tricks.sliding_window_view(np.pad(above, 1), (3, 3)).any(axis=(2, 3))
    closed = np.lib.stride_tricks.sliding_window_view(np.pad(wide, 1, constant_values=True), (3, 3)).all(axis=(2, 3))
    assert 0.1 < above.mean() < 0.9
    np.testing.assert_array_equal(tissue_mask(saturation, Preset(sthresh=20, mthresh=3, close=0)) > 0, above)
    np.testing.assert_array_equal(tissue_mask(saturation, Preset(sthresh=20, mthresh=3, close=3)) > 0, closed)


@pytest.mark.parametrize(
    ("levels", "expected"), [((1,), 0), ((1, 4, 16), 2), ((1, 32, 64.02, 128), 2), ((1, 40, 200), 1)]
)
def test_the_level_nearest_to_64(levels, expected) -> None:
    from types import SimpleNamespace

    assert level_nearest(SimpleNamespace(level_downsamples=levels)) == expected


def test_reduction_is_the_least_that_suffices() -> None:
    for width, height, limit in ((1000, 800, 800_000), (1000, 800, 799_999), (10, 10, 1), (5, 5, 1000)):
        factor = reduction_for((width, height), limit)
        assert width * height / factor**2 <= limit
        assert factor == 1 or width * height / (factor - 1) ** 2 > limit


class Drawn:
    """A slide of two levels of which only the smaller, downsample 64, can be read: an array."""

    path, properties, tile_size = Path("drawn.svs"), {}, (256, 256)

    def __init__(self, image) -> None:
        height, width = image.shape[:2]
        self.image, self.level_downsamples = image, (1.0, 64.0)
        self.level_dimensions = ((64 * width, 64 * height), (width, height))

    def read_region(self, location, level, size):
        assert level == 1
        return paste_region(self.image, location[0] // 64, location[1] // 64, size)


@pytest.mark.parametrize("preset", ["biopsy", "resection", "tcga"])
def test_the_published_presets_find_planted_ellipses(preset) -> None:
    """Two pieces of tissue of 20,480 level-0 px, one with two holes, at the parameters as they are published."""
    colours = np.random.default_rng(0).normal((205, 120, 170), 12, (300, 400, 3))
    truth = np.zeros((300, 400), np.uint8)
    for centre, axes, angle, value in (
        ((130, 150), (110, 120), 20, 1),
        ((320, 150), (60, 130), -10, 1),
        ((110, 110), (34, 28), 40, 0),
        ((150, 200), (40, 30), 0, 0),
    ):
        cv2.ellipse(truth, centre, axes, angle, 0, 360, value, cv2.FILLED)
    background = np.random.default_rng(1).normal(243, 1, (300, 400, 1))
    image = np.where(truth[..., None] > 0, colours, background).clip(0, 255).round().astype(np.uint8)
    tissue = segment(Drawn(image), load_preset(preset))
    assert (tissue.downsample, sorted(map(len, tissue.holes))) == (64, [0, 2])
    small = replace(
        tissue,
        contours=[contour // 64 for contour in tissue.contours],
        holes=[[hole // 64 for hole in holes] for holes in tissue.holes],
    )
    mask = filled(small, (400, 300))
    assert iou(mask, truth.astype(bool)) > 0.95
    for centre in ((110, 110), (150, 200)):
        assert not mask[centre[1] - 15 : centre[1] + 15, centre[0] - 15 : centre[0] + 15].any()
