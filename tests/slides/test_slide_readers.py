"""Readers: pixels against the array that was written, against OpenSlide itself and against Pillow; and refusals."""

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from dinov2.slides import SlideError, open_slide
from dinov2.slides.image_reader import ImageReader
from dinov2.slides.integrity import check_whole
from dinov2.slides.open import slide_name
from dinov2.slides.openslide_reader import OpenSlideReader
from dinov2.slides.tiff_reader import TiffReader

ROOT = Path(__file__).resolve().parents[2]
SVS = ROOT / "scripts" / "data" / "cmu-1-small-region.svs"
TCGA = ROOT.parent / "shared" / "data" / "slides" / "tcga-cr-7395-01a-01-ts1.svs"


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (300, 420, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(90, 70), (1, 1), (256, 300)])
@pytest.mark.parametrize("corner", [(0, 0), (333, 250), (-20, -9), (410, 299)])
def test_regions_are_those_written_and_black_outside(image, tmp_path, write_slide, corner, size) -> None:
    path = write_slide(tmp_path / "a.tif", image)
    wide = np.pad(image, ((400, 400), (400, 400), (0, 0)))
    expected = wide[corner[1] + 400 :, corner[0] + 400 :][: size[1], : size[0]]
    Image.fromarray(image).save(tmp_path / "a.png")
    for reader in (OpenSlideReader(path), TiffReader(path), ImageReader(tmp_path / "a.png")):
        with reader:
            np.testing.assert_array_equal(reader.read_region(corner, 0, size), expected)


def test_levels_of_both_readers_agree(image, tmp_path, write_slide) -> None:
    path = write_slide(tmp_path / "a.tif", image, factors=(1, 2, 4))
    with OpenSlideReader(path) as ours, TiffReader(path) as other:
        assert ours.level_dimensions == other.level_dimensions == ((420, 300), (210, 150), (105, 75))
        assert ours.level_downsamples == other.level_downsamples == (1.0, 2.0, 4.0)
        assert ours.tile_size == other.tile_size == (64, 64)
        for level in range(3):
            a, b = (reader.read_region((80, 40), level, (60, 50)) for reader in (ours, other))
            np.testing.assert_array_equal(a, b)


def test_a_real_slide_as_openslide_reads_it() -> None:
    region = np.asarray(openslide.OpenSlide(SVS).read_region((700, 900), 0, (300, 200)).convert("RGB"))
    with open_slide(SVS) as slide, TiffReader(SVS) as other:
        assert slide.level_dimensions == other.level_dimensions == ((2220, 2967),)
        np.testing.assert_array_equal(slide.read_region((700, 900), 0, (300, 200)), region)
        np.testing.assert_array_equal(other.read_region((700, 900), 0, (300, 200)), region)


@pytest.mark.shared
def test_jpeg_2000_tiles_without_openslide() -> None:
    if not TCGA.exists():
        pytest.skip("the shared data are not beside the checkout")
    with open_slide(TCGA) as slide, TiffReader(TCGA) as other:
        assert slide.level_dimensions == other.level_dimensions
        a, b = (reader.read_region((1000, 1000), 0, (300, 300)) for reader in (slide, other))
        np.testing.assert_array_equal(a, b)


def write_ome(path: Path, image: np.ndarray, **options: object) -> Path:
    axes = "YXS" if image.shape[-1] == 3 else "CYX"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(image, tile=(64, 64), metadata={"axes": axes, **options.pop("metadata", {})}, **options)
    return path


@pytest.mark.parametrize("layout", ["interleaved", "planar", "pages", "grey"])
def test_ome_tiff_layouts(image, tmp_path, layout) -> None:
    path = tmp_path / "slide.ome.tiff"
    planes = np.moveaxis(image, 2, 0)
    if layout == "interleaved":
        write_ome(path, image, photometric="rgb")
    elif layout == "planar":
        write_ome(path, planes, photometric="rgb", planarconfig="separate")
    elif layout == "pages":
        write_ome(path, planes, photometric="minisblack")
    else:
        image = np.repeat(image[..., :1], 3, axis=2)
        with tifffile.TiffWriter(path, ome=True) as writer:
            writer.write(image[..., 0], tile=(64, 64), metadata={"axes": "YX"})
    with open_slide(path) as slide:
        assert isinstance(slide, TiffReader)
        np.testing.assert_array_equal(slide.read_region((100, 90), 0, (200, 150)), image[90:240, 100:300])


def test_ome_tiff_levels_and_resolution(image, tmp_path) -> None:
    path = tmp_path / "slide.ome.tif"
    size = {"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25}
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(image, tile=(64, 64), photometric="rgb", subifds=1, metadata={"axes": "YXS", **size})
        writer.write(image[::4, ::4], tile=(64, 64), photometric="rgb", subfiletype=1)
    with open_slide(path) as slide:
        assert slide.level_dimensions == ((420, 300), (105, 75))
        assert float(slide.properties["openslide.mpp-x"]) == float(slide.properties["openslide.mpp-y"]) == 0.25
        np.testing.assert_array_equal(slide.read_region((40, 80), 1, (50, 40)), image[::4, ::4][20:60, 10:60])


def test_strips_are_read_like_tiles(image, tmp_path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", rowsperstrip=7)
    with TiffReader(tmp_path / "a.tif") as slide:
        np.testing.assert_array_equal(slide.read_region((5, 3), 0, (100, 200)), image[3:203, 5:105])


def test_resolution_tags_and_dpi(image, tmp_path, write_slide) -> None:
    path = write_slide(tmp_path / "a.tif", image, mpp=0.4)
    Image.fromarray(image).save(tmp_path / "a.png", dpi=(25400, 25400))
    with OpenSlideReader(path) as a, TiffReader(path) as b, open_slide(tmp_path / "a.png") as c:
        for slide, mpp in ((a, 0.4), (b, 0.4), (c, 1.0)):
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(mpp, rel=1e-3)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_deep_images_are_refused(image, tmp_path, dtype) -> None:
    tifffile.imwrite(tmp_path / "deep.ome.tiff", image.astype(dtype), photometric="rgb", tile=(64, 64))
    with pytest.raises(SlideError, match="8-bit"):
        TiffReader(tmp_path / "deep.ome.tiff")
    Image.fromarray(image[..., 0].astype(np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(SlideError, match="more than 8 bits"):
        open_slide(tmp_path / "deep.png")


@pytest.mark.parametrize("name", ["a.svs", "a.ndpi", "a.tif", "a.mrxs", "a.png", "a.jpg", "a.ome.tiff"])
def test_a_text_file_is_named_with_what_the_readers_said(tmp_path, name) -> None:
    (tmp_path / name).write_text("no slide")
    with pytest.raises(SlideError, match=f"{name}: (OpenSlide|not a readable image)"):
        open_slide(tmp_path / name)


def test_missing_files_and_folders(tmp_path) -> None:
    with pytest.raises(SlideError, match="no such file"):
        open_slide(tmp_path / "a.svs")
    with pytest.raises(SlideError, match="a folder"):
        open_slide(tmp_path)


def test_a_slide_without_its_end_does_not_open(tmp_path) -> None:
    """Aperio's directories come last."""
    (tmp_path / "cut.svs").write_bytes(SVS.read_bytes()[:900_000])
    with pytest.raises(SlideError, match="copied whole"):
        open_slide(tmp_path / "cut.svs")


def test_a_slide_that_opens_but_lacks_its_last_tiles(image, tmp_path, write_slide) -> None:
    """The directory of a BigTIFF written by a streaming tool comes first; here the tiles of level 0 are cut."""
    path = write_slide(tmp_path / "whole.tif", image)
    check_whole(path)
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags["TileOffsets"]
        position, last = tag.valueoffset, tag.value[-1]
    data = bytearray(path.read_bytes())
    assert int.from_bytes(data[position + 4 * 34 : position + 4 * 35], "little") == last
    data[position + 4 * 34 : position + 4 * 35] = (len(data) - 10).to_bytes(4, "little")
    path.write_bytes(data)
    with open_slide(path), pytest.raises(SlideError, match="cut off: it reaches to byte"):
        check_whole(path)
    with TiffReader(path) as slide, pytest.raises(SlideError, match="row 4, column 6 of level 0"):
        slide.read_region((0, 0), 0, (420, 300))


@pytest.mark.parametrize("slide", [SVS, pytest.param(TCGA, marks=pytest.mark.shared)])
def test_a_slide_cut_behind_its_first_directory(tmp_path, slide) -> None:
    if not slide.exists():
        pytest.skip("the shared data are not beside the checkout")
    data, cut = slide.read_bytes(), tmp_path / "cut.svs"
    cut.write_bytes(data)
    check_whole(cut)
    for part in (0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.999):
        cut.write_bytes(data[: int(part * len(data))])
        with pytest.raises(SlideError, match="cut off"):
            check_whole(cut)
    cut.write_bytes(data[:-1])
    with pytest.raises(SlideError, match="cut off"):
        check_whole(cut)


@pytest.mark.parametrize("bigtiff", [False, True])
def test_a_cut_level_of_an_ome_tiff(image, tmp_path, bigtiff) -> None:
    path = tmp_path / "a.ome.tiff"
    with tifffile.TiffWriter(path, ome=True, bigtiff=bigtiff) as writer:
        writer.write(image, tile=(64, 64), subifds=1, metadata={"axes": "YXS"})
        writer.write(image[::2, ::2], tile=(64, 64), subfiletype=1)
    check_whole(path)
    with tifffile.TiffFile(path) as file:
        level = file.pages[0].pages[0]
        places = [level.offset + 5, level.dataoffsets[-1] + 10]
    data = path.read_bytes()
    for place in places:
        path.write_bytes(data[:place])
        with pytest.raises(SlideError, match="cut off"):
            check_whole(path)


@pytest.mark.parametrize("photometric", ["palette", "miniswhite"])
def test_colours_that_are_not_rgb_are_refused(image, tmp_path, photometric) -> None:
    more = {"colormap": np.zeros((3, 256), np.uint16)} if photometric == "palette" else {}
    tifffile.imwrite(tmp_path / "a.tif", image[..., 0], photometric=photometric, tile=(64, 64), **more)
    with pytest.raises(SlideError, match=f"{photometric.upper()}.*Export"):
        TiffReader(tmp_path / "a.tif")


def test_padding_of_the_last_tiles_is_no_tissue(tmp_path) -> None:
    full = np.full((128, 128, 3), 200, np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", full, photometric="rgb", tile=(64, 64))
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        for tag in ("ImageWidth", "ImageLength"):  # the tiles now reach beyond the image
            place = file.pages[0].tags[tag].valueoffset
            data[place : place + 2] = (100).to_bytes(2, "little")
    (tmp_path / "a.tif").write_bytes(data)
    with TiffReader(tmp_path / "a.tif") as slide:
        region = slide.read_region((0, 0), 0, (128, 128))
    assert (region[:100, :100] == 200).all()
    assert not region[100:].any()
    assert not region[:, 100:].any()


def test_damaged_pixels_are_named(tmp_path) -> None:
    data = bytearray(SVS.read_bytes())
    data[1000:900_000] = bytes(899_000)
    (tmp_path / "damaged.svs").write_bytes(data)
    with open_slide(tmp_path / "damaged.svs") as slide, pytest.raises(SlideError, match="cannot be decoded"):
        slide.read_region((0, 0), 0, (2000, 1000))


@pytest.mark.parametrize(("path", "name"), [("x/a.b.svs", "a.b"), ("a.ome.tiff", "a"), ("a.OME.TIF", "a"), ("a", "a")])
def test_slide_names(path, name) -> None:
    assert slide_name(path) == name
