"""The data set `Slides`: tiles of several slides in the manifest's order, and rows that cannot be used."""

import os
import pickle
import resource
from itertools import islice

import h5py
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from dinov2.data import pack
from dinov2.data.datasets import make_dataset, slides
from dinov2.data.datasets.slides_index import index_slides
from dinov2.data.errors import BadTileError, DatasetError
from dinov2.data.loaders import make_loader
from dinov2.slides import Coordinates, handles, open_slide, write_coordinates
from dinov2.slides.coordinates import geometry_at_level, geometry_at_mpp
from dinov2.slides.handles import OpenSlides
from dinov2.utils.schema import CropsSection, IbotSection


@pytest.fixture
def folder(tmp_path, write_slide):
    """Slides a (3 patches), b (none) and c (2, resampled), with coordinates."""
    rng = np.random.default_rng(0)
    for name, count in (("a", 3), ("b", 0), ("c", 2)):
        image = rng.integers(0, 256, (200, 300, 3), dtype=np.uint8)
        path = write_slide(tmp_path / "slides" / f"{name}.tif", image)
        with open_slide(path) as slide:
            geometry = geometry_at_mpp(slide, 0.7, 32, 0.5) if name == "c" else geometry_at_level(slide, 0, 32, 0.5)
            coords = np.stack([np.arange(count) * 40, np.arange(count) * 10], axis=1)
            write_coordinates(
                tmp_path / "out" / "patches" / f"{name}.h5", Coordinates(name, (300, 200), coords, geometry), slide
            )
    (tmp_path / "slides.csv").write_text("slide\nslides/a.tif\nslides/b.tif\n" + f"{tmp_path}/slides/c.tif\n")
    return tmp_path


def spec(folder, **keys):
    keys = {"manifest": folder / "slides.csv", "coords": folder / "out"} | keys
    return "Slides:" + ":".join(f"{key}={value}" for key, value in keys.items())


def test_tiles_are_the_slides_pixels(folder) -> None:
    dataset = make_dataset(spec(folder))
    assert len(dataset) == 5
    with open_slide(folder / "slides" / "a.tif") as slide:
        for i in range(3):
            tile = dataset.decode(i)
            assert (tile.dtype, tile.shape) == (torch.uint8, (3, 32, 32))
            np.testing.assert_array_equal(
                tile.permute(1, 2, 0).numpy(), slide.read_region((40 * i, 10 * i), 0, (32, 32))
            )
    assert dataset.path(2) == f"{folder}/slides/a.tif at (80, 20)"
    assert dataset.path(3) == f"{folder}/slides/c.tif at (0, 0)"
    assert dataset.decode(4).shape == (3, 32, 32)


def test_packed_patches_keep_their_places(folder) -> None:
    assert pack.main([spec(folder), "--out", str(folder / "packed"), "--format", "h5"]) == 0
    packed, dataset = make_dataset(f"H5:root={folder}/packed"), make_dataset(spec(folder))
    assert [packed.place(i) for i in range(5)] == [dataset.place(i) for i in range(5)]
    assert packed.place(2) == (80, 20)


def test_few_slides_are_open_at_once_and_none_is_pickled(folder) -> None:
    dataset = make_dataset(spec(folder, open=1))
    whole = [dataset.decode(i) for i in range(5)]
    again = pickle.loads(pickle.dumps(dataset))
    assert len(again._slides) == 0
    for i in (4, 0, 3, 1, 2):
        assert torch.equal(again.decode(i), whole[i])
        assert len(again._slides) == 1


def test_workers_read_the_same(folder) -> None:
    dataset = make_dataset(spec(folder))

    class Tiles(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(dataset)

        def __getitem__(self, index: int) -> torch.Tensor:
            return dataset.decode(index)

    here = [dataset.decode(i) for i in range(5)]
    loaded = torch.utils.data.DataLoader(Tiles(), batch_size=None, num_workers=2)
    assert all(torch.equal(a, b) for a, b in zip(here, loaded, strict=True))


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("slide\nslides/a.tif\nslides/d.tif\n", r"slides.csv, line 3: slide 'slides/d.tif' does not exist"),
        ("slide\n\nslides/a.tif\n,\n", r"slide '' does not exist"),
        ("slide\nslides/other.tif\n", r"line 2: no coordinates of slide other in .*out.*python -m eval.patches"),
        ("slide\nslides/text.svs\n", r"line 2: .*text.svs: OpenSlide"),
        ("slide\nslides/b.tif\n", r"none of its 1 slides has a patch"),
        ("file\nslides/a.tif\n", r"needs a column slide and at least one row; it has file"),
        ("", r"it has no row"),
    ],
)
def test_unusable_manifests(folder, write_slide, manifest, message) -> None:
    write_slide(folder / "slides" / "other.tif", np.zeros((64, 64, 3), np.uint8))
    (folder / "slides" / "text.svs").write_text("no slide")
    (folder / "out" / "patches" / "text.h5").write_bytes((folder / "out" / "patches" / "a.h5").read_bytes())
    (folder / "slides.csv").write_text(manifest)
    with pytest.raises(DatasetError, match=message):
        make_dataset(spec(folder))


def test_coordinates_of_another_slide(folder, write_slide) -> None:
    write_slide(folder / "slides" / "a.tif", np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"line 2: coordinates of a were made for a slide of 300 x 200 px.*64 x 64"):
        make_dataset(spec(folder))


def test_slides_are_opened_once_and_again_when_something_changes(folder, kept, monkeypatch) -> None:
    listed = []
    monkeypatch.setattr(slides, "index_slides", lambda *paths: (listed.append(paths), index_slides(*paths))[1])

    def age() -> None:
        for path in (folder / "slides.csv", *folder.glob("slides/*"), folder / "out", *folder.glob("out/**/*")):
            os.utime(path, (1e9, 1e9))

    def read() -> list[str]:
        dataset = make_dataset(spec(folder))
        again = pickle.loads(pickle.dumps(dataset))
        assert all(torch.equal(dataset.decode(i), again.decode(i)) for i in range(len(dataset)))
        return [dataset.path(i) for i in range(len(dataset))]

    age()
    first = read()
    assert (read(), len(listed)) == (first, 1)
    assert list(kept.glob("slides-*"))
    for path in ("slides.csv", "slides/c.tif", "out/patches/b.h5"):
        os.utime(folder / path, (1e9, 1.1e9))
        assert read() == first
        age()
        read()
    assert len(listed) == 7
    with h5py.File(folder / "out" / "patches" / "a.h5", "r+") as file:
        file["coords"][0] = [7, 9]
    assert read()[0] == f"{folder}/slides/a.tif at (7, 9)"
    assert make_dataset(spec(folder, refresh="never")).place(0) == (7, 9)
    assert len(listed) == 8


def test_a_slide_that_was_cut_off_is_refused(folder) -> None:
    path = folder / "slides" / "a.tif"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DatasetError, match=r"line 2: .*a.tif: cut off: it reaches to byte"):
        make_dataset(spec(folder))


def test_other_bad_values(folder) -> None:
    with pytest.raises(DatasetError, match=r"nowhere.csv: it cannot be read"):
        make_dataset(spec(folder, manifest=folder / "nowhere.csv"))
    with pytest.raises(DatasetError, match=r"is no folder. Make it: python -m eval.patches"):
        make_dataset(spec(folder, coords=folder / "nowhere"))
    with pytest.raises(DatasetError, match=r"open=0: it must be a whole number"):
        make_dataset(spec(folder, open=0))


def test_a_slide_that_disappears_is_a_bad_tile(folder) -> None:
    dataset = make_dataset(spec(folder))
    (folder / "slides" / "a.tif").unlink()
    with pytest.raises(BadTileError, match=r"a.tif at \(40, 10\): .*no such file"):
        dataset.decode(1)
    assert dataset.decode(3).shape == (3, 32, 32)


def _damage_tile(path, number) -> None:
    """Overwrite one compressed tile of level 0, so that OpenSlide cannot decode it."""
    with tifffile.TiffFile(path) as file:
        start, size = file.pages[0].dataoffsets[number], file.pages[0].databytecounts[number]
    content = bytearray(path.read_bytes())
    content[start : start + size] = bytes([255]) * size
    path.write_bytes(content)


def test_one_damaged_tile_leaves_the_others_readable(folder) -> None:
    whole = [make_dataset(spec(folder)).decode(i) for i in range(5)]
    _damage_tile(folder / "slides" / "a.tif", 0)  # x and y from 0 to 63: patches 0, and 1 at (40, 10)
    dataset = make_dataset(spec(folder))
    for i in (2, 0, 2, 1, 2, 4):
        if i in (0, 1):
            with pytest.raises(BadTileError, match=r"a.tif at .* cannot be decoded"):
                dataset.decode(i)
        else:
            assert torch.equal(dataset.decode(i), whole[i])


def test_a_damaged_tile_is_replaced_alike_by_any_number_of_workers(folder) -> None:
    _damage_tile(folder / "slides" / "a.tif", 0)
    crops = CropsSection(global_crops_size=32, local_crops_size=16, local_crops_number=1)
    options = {"patch_size": 8, "global_batch_size": 2, "seed": 0, "max_bad_fraction": 0.4}
    seen = []
    for workers in (0, 2):
        loader = make_loader(make_dataset(spec(folder)), crops, IbotSection(), num_workers=workers, **options)
        seen.append([(batch.paths, batch.bad) for batch in islice(loader, 6)])
        assert set(loader.monitor.paths) == {f"{folder}/slides/a.tif at {place}" for place in ("(0, 0)", "(40, 10)")}
    assert seen[0] == seen[1]


def test_rows_that_are_the_same_slide_are_refused(folder, write_slide) -> None:
    (folder / "slides" / "link.tif").symlink_to(folder / "slides" / "a.tif")
    write_slide(folder / "other" / "c.tif", np.zeros((200, 300, 3), np.uint8))
    for rows, message in (
        (("a", "b", "a"), r"line 4: .*/slides/a.tif has the same slide, .* as line 2"),
        (("a", "link"), r"line 3: .*/slides/link.tif has the same slide, .* as line 2"),
        (("c", "a", "../other/c"), r"line 4: .*/other/c.tif has the same coordinate file, .*/c.h5, as line 2"),
    ):
        (folder / "slides.csv").write_text("slide\n" + "".join(f"slides/{row}.tif\n" for row in rows))
        with pytest.raises(DatasetError, match=message):
            make_dataset(spec(folder))


@pytest.mark.parametrize(
    ("coords", "attributes", "message"),
    [
        ([[2**33 + 5, 0]], {}, r"row 0 of coords is \[8589934597, 0\]; they must be whole"),
        ([[0.0, 0.0], [0.0, np.nan]], {}, r"row 1 of coords is \[0\.0, nan\]"),
        ([[0.5, 0.0]], {}, r"row 0 of coords is \[0\.5, 0\.0\]"),
        (
            [[0, 0], [300, 0]],
            {},
            r"patch 1 of the coordinates of a, at \(300, 0\), lies outside of .*a.tif \(300 x 200",
        ),
        ([[0, -32]], {}, r"patch 0 .* lies outside"),
        ([[0, 0]], {"patch_size": 0}, r"patch_size 0, of which 0 px"),
        ([[0, 0]], {"patch_size": 2**20}, r"both must be 1 to 16,384 px"),
        ([[0, 0]], {"patch_size": "abc"}, r"not a readable .*attribute patch_size is no number"),
        ([[0, 0]], {"downsample": np.zeros(2)}, r"downsample 0 must be positive"),
        ([[0, 0]], {"downsample": np.zeros(0)}, r"attribute downsample is no number"),
        ([[b"a", b"b"]], {}, r"coords are \|S1 \(1, 2\), not numbers"),
    ],
)
def test_values_that_no_patch_has(folder, coords, attributes, message) -> None:
    path = folder / "out" / "patches" / "a.h5"
    with h5py.File(path, "r+") as file:
        before = dict(file["coords"].attrs)
        del file["coords"]
        file["coords"] = np.array(coords)
        file["coords"].attrs.update(before | attributes)
    with pytest.raises(DatasetError, match=rf"line 2: .*{message}"):
        make_dataset(spec(folder))


def test_patches_over_the_edge_are_good(folder) -> None:
    with h5py.File(folder / "out" / "patches" / "a.h5", "r+") as file:
        file["coords"][:] = [[-31, 0], [299, 199], [0, 0]]
    assert make_dataset(spec(folder)).decode(1).shape == (3, 32, 32)


def test_slides_that_openslide_does_not_read_are_open_within_a_bound(folder, monkeypatch) -> None:
    monkeypatch.setattr(handles, "IN_MEMORY", 2)
    paths = [folder / "slides" / f"{number}.png" for number in range(4)]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)
    opened = OpenSlides(10)
    for path in (folder / "slides" / "a.tif", *paths):
        opened.get(path)
    assert list(opened._open) == [folder / "slides" / "a.tif", *paths[2:]]


def test_a_quarter_of_the_files_are_slides_at_most(folder, monkeypatch) -> None:
    assert make_dataset(spec(folder, open=3))._slides.limit == 3
    monkeypatch.setattr(resource, "getrlimit", lambda what: (40, 1000))
    assert make_dataset(spec(folder))._slides.limit == 10
