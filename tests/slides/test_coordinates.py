"""Patches: their pixels and their field of view, natively and resampled; and the order in which they are read."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinov2.slides import SlideError, open_slide
from dinov2.slides.coordinates import (
    finest_level_for,
    geometry_at_level,
    geometry_at_mpp,
    read_patch,
    reading_order,
)


@pytest.fixture
def image() -> np.ndarray:
    """Smooth, so that resampling can be compared: each channel is a plane."""
    y, x = np.mgrid[0:600, 0:800]
    return np.stack([x / 4, y / 4, (x + y) / 8], axis=2).round().astype(np.uint8)


@pytest.fixture
def slide(tmp_path, image, write_slide):
    with open_slide(write_slide(tmp_path / "a.tif", image, factors=(1, 2, 4), mpp=0.25)) as opened:
        yield opened


@pytest.mark.parametrize("level", [0, 1, 2])
def test_native_patches_are_read_region(slide, level) -> None:
    geometry = geometry_at_level(slide, level, 96, 0.25)
    expected = slide.read_region((120, 80), level, (96, 96))
    np.testing.assert_array_equal(read_patch(slide, geometry, 120, 80), expected)
    assert geometry.patch_size_level0 == 96 * 2**level
    assert geometry.mpp == 0.25 * 2**level


@pytest.mark.parametrize(("mpp", "level"), [(0.25, 0), (0.251, 0), (0.5, 1), (1.0, 2), (0.4999, 1)])
def test_a_target_that_a_level_has_is_read_from_it_as_it_is(slide, mpp, level) -> None:
    geometry = geometry_at_mpp(slide, mpp, 64, 0.25)
    assert (geometry.native, geometry.level) == (True, level)
    assert geometry.mpp == pytest.approx(mpp, rel=0.005)


@pytest.mark.parametrize("mpp", [0.3, 0.37, 0.6, 0.9, 1.3])
def test_the_field_of_view_at_a_target_mpp(slide, image, mpp) -> None:
    """The image's channels tell the position of every pixel: a patch must cover the micrometres asked for to 1%."""
    side = 64
    geometry = geometry_at_mpp(slide, mpp, side, 0.25)
    patch = read_patch(slide, geometry, 100, 60).astype(float)
    assert patch.shape == (side, side, 3)
    inner = slice(4, side - 4)
    for channel, axis in ((0, 1), (1, 0)):
        profile = patch[inner, inner, channel].mean(axis=1 - axis)
        slope = np.polyfit(np.arange(len(profile)), profile, 1)[0]  # grey values a px; a level-0 px has 1/4
        assert slope * 4 * 0.25 == pytest.approx(mpp, rel=0.01)
    # The patch's centre is where it should be, within a pixel of the level that was read.
    centre = patch[side // 2 - 1 : side // 2 + 1, side // 2 - 1 : side // 2 + 1].mean(axis=(0, 1))
    assert centre[0] * 4 == pytest.approx(100 + side * mpp / 0.25 / 2 - 0.5, abs=3)
    assert centre[1] * 4 == pytest.approx(60 + side * mpp / 0.25 / 2 - 0.5, abs=3)


def test_resampled_patches_come_from_the_next_finer_level(slide) -> None:
    assert [geometry_at_mpp(slide, mpp, 32, 0.25).level for mpp in (0.24, 0.4, 0.6, 0.9, 1.5)] == [0, 0, 1, 1, 2]


def test_enlarging_is_refused(slide) -> None:
    with pytest.raises(SlideError, match=r"0.12 um per px were asked for, but level 0 has 0.25.*enlarged 2.08 times"):
        geometry_at_mpp(slide, 0.12, 64, 0.25)


def test_a_level_that_does_not_exist(slide) -> None:
    with pytest.raises(SlideError, match=r"level 3 does not exist; there are 3 \(0: 800 x 600, 1: 400 x 300"):
        geometry_at_level(slide, 3, 64, 0.25)


@given(st.lists(st.floats(1, 64), min_size=1, max_size=6), st.floats(0.5, 100))
def test_finest_level(values, scale) -> None:
    levels = sorted(values)
    level = finest_level_for(levels, scale)
    assert levels[level] <= scale or level == 0
    assert all(value > scale or value <= levels[level] for value in levels)


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), max_size=60), st.integers(50, 600))
def test_reading_order_visits_each_tile_once(corners, tile) -> None:
    coords = np.array(corners, dtype=np.int64).reshape(-1, 2)
    order = reading_order(coords, (tile, tile))
    assert sorted(order.tolist()) == list(range(len(coords)))
    visited = [tuple(coords[i] // tile) for i in order]
    runs = [tile for tile, _ in itertools.groupby(visited)]
    assert len(runs) == len(set(runs))


def test_reading_order_of_a_coarser_level() -> None:
    corners = [(x, y) for y in (0, 256, 512, 768) for x in (0, 256, 512, 768)]
    order = reading_order(np.array(corners), (128, 128), 4.0)  # tiles of 512 level-0 px, four patches each
    visited = [(corners[i][0] // 512, corners[i][1] // 512) for i in order]
    assert len(list(itertools.groupby(visited))) == 4
