"""Coordinate files: read back as written, and read by the arithmetic of CLAM's and TRIDENT's feature extraction."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
from PIL import Image

from dinov2.slides import Coordinates, CoordinatesError, open_slide, read_coordinates, write_coordinates
from dinov2.slides.coordinates import check_slide, file_number, geometry_at_level, geometry_at_mpp, read_patch
from dinov2.slides.coordinates_file import find_coordinates


@pytest.fixture
def slide(tmp_path, write_slide):
    y, x = np.mgrid[0:512, 0:768]
    image = np.stack([x / 4, y / 4, (x + y) / 8], axis=2).astype(np.uint8)
    with open_slide(write_slide(tmp_path / "a.tif", image, factors=(1, 2, 4), mpp=0.25)) as opened:
        yield opened


def make(slide, level=None, mpp=None, overlap=0) -> Coordinates:
    geometry = (
        geometry_at_level(slide, level, 64, 0.25, overlap)
        if level is not None
        else geometry_at_mpp(slide, mpp, 64, 0.25, overlap)
    )
    return Coordinates("a", slide.level_dimensions[0], np.array([[0, 0], [40, 64]]), geometry, "/slides/a.tif")


def read_as_clam(path, slide):
    """What CLAM does with a file: pixels of `patch_level`, `patch_size` a side."""
    with h5py.File(path, "r") as file:
        attributes = file["coords"].attrs
        level, side = attributes["patch_level"], attributes["patch_size"]
        return [slide.read_region(tuple(xy), int(level), (int(side), int(side))) for xy in file["coords"][:].tolist()]


def read_as_trident(path, slide):
    """What TRIDENT does: field of view from the magnifications, the nearest level not coarser, then resized."""
    with h5py.File(path, "r") as file:
        attributes, coords = dict(file["coords"].attrs), file["coords"][:].tolist()
    downsample = (10 / attributes["target_magnification"]) / (10 / attributes["level0_magnification"])
    source = round(attributes["patch_size"] * downsample)
    near = [i for i, value in enumerate(slide.level_downsamples) if abs(value - downsample) <= 0.1]
    below = [i for i, value in enumerate(slide.level_downsamples) if value <= downsample]
    level = near[0] if near else below[-1]
    side = round(source / int(slide.level_downsamples[level]))
    wanted = (int(attributes["patch_size"]),) * 2
    regions = [Image.fromarray(slide.read_region(tuple(xy), level, (side, side))) for xy in coords]
    return [np.asarray(region.resize(wanted)) for region in regions], source


@pytest.mark.parametrize("level", [0, 1, 2])
def test_both_read_native_patches(slide, tmp_path, level) -> None:
    coordinates = make(slide, level=level)
    write_coordinates(tmp_path / "a.h5", coordinates, slide)
    ours = [read_patch(slide, coordinates.geometry, x, y) for x, y in coordinates.coords]
    np.testing.assert_array_equal(read_as_clam(tmp_path / "a.h5", slide), ours)
    theirs, source = read_as_trident(tmp_path / "a.h5", slide)
    np.testing.assert_array_equal(theirs, ours)
    assert source == coordinates.geometry.patch_size_level0 == 64 * 2**level


@pytest.mark.parametrize("mpp", [0.3, 0.7, 0.9, 1.7])
def test_only_trident_reads_resampled_patches(slide, tmp_path, mpp) -> None:
    coordinates = make(slide, mpp=mpp)
    write_coordinates(tmp_path / "a.h5", coordinates, slide)
    with pytest.raises(KeyError, match="patch_level"):
        read_as_clam(tmp_path / "a.h5", slide)
    theirs, source = read_as_trident(tmp_path / "a.h5", slide)
    assert source == coordinates.geometry.patch_size_level0
    ours = [read_patch(slide, coordinates.geometry, x, y) for x, y in coordinates.coords]
    # TRIDENT rounds the field of view to whole pixels of the level; on a slope of 1/4 a px that is a grey value or two.
    assert np.abs(np.array(theirs).astype(int) - np.array(ours).astype(int))[:, 2:-2, 2:-2].max() <= 2


def test_attributes(slide, tmp_path) -> None:
    write_coordinates(tmp_path / "native.h5", make(slide, level=1, overlap=8), slide)
    write_coordinates(tmp_path / "target.h5", make(slide, mpp=0.7, overlap=8), slide)
    with h5py.File(tmp_path / "native.h5") as a, h5py.File(tmp_path / "target.h5") as b:
        native, target = dict(a["coords"].attrs), dict(b["coords"].attrs)
        assert a["coords"].shape == (2, 2)
    assert (native["patch_level"], native["patch_size"], native["patch_size_level0"]) == (1, 64, 128)
    assert (native["level0_magnification"], native["target_magnification"]) == (40, 20)
    assert "patch_level" not in target
    assert target["target_magnification"] == pytest.approx(10 / 0.7)
    assert target["patch_size_level0"] == round(64 * 0.7 / 0.25)
    for attributes in (native, target):
        assert (attributes["overlap"], attributes["name"]) == (8, "a")
        assert (attributes["level0_width"], attributes["level0_height"]) == (768, 512)


@pytest.mark.parametrize("options", [{"level": 1}, {"mpp": 0.7}, {"mpp": 0.251}])
def test_files_are_read_back(slide, tmp_path, options) -> None:
    written = make(slide, **options)
    write_coordinates(tmp_path / "a.h5", written, slide)
    read = read_coordinates(tmp_path / "a.h5")
    np.testing.assert_array_equal(read.coords, written.coords)
    assert (read.name, read.size) == (written.name, written.size)
    assert read.geometry.downsample == pytest.approx(written.geometry.downsample, rel=1e-12)
    for x, y in written.coords:
        a, b = (read_patch(slide, c.geometry, x, y) for c in (read, written))
        np.testing.assert_array_equal(a, b)


def test_a_file_of_clam(slide, tmp_path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["coords"] = np.array([[64, 32]], dtype=np.int32)
        file["coords"].attrs.update(
            {"patch_size": 64, "patch_level": 1, "name": "a", "downsample": np.array([2.0, 2.0])}
        )
    coordinates = read_coordinates(tmp_path / "a.h5", slide)
    check_slide(coordinates, slide)
    np.testing.assert_array_equal(
        read_patch(slide, coordinates.geometry, 64, 32), slide.read_region((64, 32), 1, (64, 64))
    )
    with pytest.raises(CoordinatesError, match="only be read together with their slide"):
        read_coordinates(tmp_path / "a.h5")


@pytest.mark.parametrize(("power", "level", "native"), [(20, 1, True), (40, 0, True), (15, 1, False)])
def test_a_file_of_trident(slide, tmp_path, power, level, native) -> None:
    with h5py.File(tmp_path / "a_patches.h5", "w") as file:
        file["coords"] = np.array([[64, 32]])
        attributes = {"patch_size": 64, "level0_magnification": 40, "target_magnification": power, "overlap": 0}
        file["coords"].attrs.update(attributes)
    coordinates = read_coordinates(tmp_path / "a_patches.h5", slide)
    assert (coordinates.geometry.level, coordinates.geometry.native) == (level, native)
    assert coordinates.geometry.patch_size_level0 == round(64 * 40 / power)


def test_a_file_of_another_slide(slide, tmp_path, write_slide) -> None:
    write_coordinates(tmp_path / "a.h5", make(slide, level=2), slide)
    other = write_slide(tmp_path / "b.tif", np.zeros((200, 100, 3), np.uint8))
    with open_slide(other) as opened, pytest.raises(CoordinatesError, match=r"768 x 512 px, but .*b.tif has 100 x 200"):
        check_slide(read_coordinates(tmp_path / "a.h5"), opened)


def test_unreadable_files(tmp_path, slide) -> None:
    (tmp_path / "text.h5").write_text("no h5")
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file["features"] = np.zeros(3)
    with h5py.File(tmp_path / "bare.h5", "w") as file:
        file["coords"] = np.zeros((2, 2))
        file["coords"].attrs["patch_size"] = 256
    for name, message in (("text", "not a readable"), ("empty", "not a readable"), ("bare", "have no 'patch_level'")):
        with pytest.raises(CoordinatesError, match=message):
            read_coordinates(tmp_path / f"{name}.h5", slide)


@pytest.mark.parametrize("name", ["a.h5", "a_patches.h5", "patches/a.h5", "patches/a_patches.h5"])
def test_names_of_all_three_tools_are_found(tmp_path, name) -> None:
    (tmp_path / "patches").mkdir()
    (tmp_path / name).write_bytes(b"")
    assert find_coordinates(tmp_path, "a") == tmp_path / name
    with pytest.raises(CoordinatesError, match="no coordinates of slide b"):
        find_coordinates(tmp_path, "b")


def test_another_slide_of_the_same_size(tmp_path, write_slide) -> None:
    images = [np.full((200, 100, 3), value, np.uint8) for value in (90, 91)]
    slide, other = (write_slide(tmp_path / f"{i}.tif", image) for i, image in enumerate(images))
    assert slide.stat().st_size == other.stat().st_size
    with open_slide(slide) as opened, open_slide(other) as wrong:
        geometry = geometry_at_level(opened, 0, 64, 0.5)
        coordinates = Coordinates("a", (100, 200), np.array([[0, 0]]), geometry, "", file_number(slide))
        write_coordinates(tmp_path / "a.h5", coordinates, opened)
        read = read_coordinates(tmp_path / "a.h5")
        check_slide(read, opened)
        with pytest.raises(CoordinatesError, match=r"another file than .*1\.tif: another slide of the same size"):
            check_slide(read, wrong)
        write_coordinates(tmp_path / "old.h5", replace(coordinates, file_number=None), opened)
        check_slide(read_coordinates(tmp_path / "old.h5"), wrong)


def test_patches_further_apart_than_wide_do_not_overlap(slide, tmp_path) -> None:
    write_coordinates(tmp_path / "a.h5", make(slide, level=0, overlap=-100), slide)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["coords"].attrs["overlap"] == 0
