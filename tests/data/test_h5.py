"""Tiles in HDF5 files."""

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from dinov2.data.datasets import H5, NamedTiles, TileDataset, handles, make_dataset
from dinov2.data.datasets import h5 as h5_module
from dinov2.data.datasets.damage import refuse_damage
from dinov2.data.errors import BadTileError, DatasetError, TooManyBadTilesError


def _write(path: Path, count: int, key: str = "img", seed: int = 0, **options: object) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 16, 20, 3)).astype(np.uint8)
    with h5py.File(path, "w") as file:
        file.create_dataset(key, data=pixels, **options)
        file["coords"] = np.zeros((count, 2), dtype=np.int64)
    return pixels


def test_tiles_of_several_files(tmp_path: Path) -> None:
    first = _write(tmp_path / "a" / "x.h5", 3)
    _write(tmp_path / "b.h5", 0)
    last = _write(tmp_path / "c.hdf5", 4, "imgs", 1, chunks=(1, 16, 20, 3), compression="gzip")
    dataset = make_dataset(f"H5:root={tmp_path}")
    assert isinstance(dataset, TileDataset)
    assert isinstance(dataset, NamedTiles)
    assert len(dataset) == 7
    expected = np.concatenate([first, last]).transpose(0, 3, 1, 2)
    assert all((dataset.decode(i).numpy() == expected[i]).all() for i in (6, 0, 3, 2))
    assert dataset.decode(0).is_contiguous()
    assert dataset.path(3) == f"{tmp_path}/c.hdf5/0"
    assert [dataset.name(i) for i in (2, 3)] == ["a/x/000002", "c/000000"]
    for outside in (-1, 7):
        with pytest.raises(IndexError, match=r"not in 0 \.\. 6"):
            dataset.path(outside)


def test_compressed_chunks_of_several_tiles_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _write(tmp_path / "one.h5", 4, chunks=(1, 16, 20, 3), compression="gzip")
    _write(tmp_path / "plain.h5", 4, chunks=(2, 16, 20, 3))
    _write(tmp_path / "few.h5", 1, chunks=(8, 16, 20, 3), compression="gzip", maxshape=(None, 16, 20, 3))
    H5(str(tmp_path))
    assert not caplog.records
    _write(tmp_path / "many.h5", 4, chunks=(3, 16, 20, 3), compression="lzf")
    H5(str(tmp_path))
    (record,) = caplog.records
    assert f"1 slow to read: {tmp_path}/many.h5 (3 tiles a compressed chunk" in record.getMessage()
    assert "dinov2.data.pack" in record.getMessage()


def test_one_file_and_links_to_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _write(tmp_path / "x.h5", 3)
    (tmp_path / "y.h5").symlink_to(tmp_path / "x.h5")
    assert len(H5(str(tmp_path))) == len(H5(str(tmp_path / "y.h5"))) == 3
    assert "1 skipped: " in caplog.text
    assert "y.h5 (a file that is read under another name)" in caplog.text


def test_survives_pickling_with_open_files(tmp_path: Path) -> None:
    _write(tmp_path / "x.h5", 3)
    dataset = H5(str(tmp_path))
    tile = dataset.decode(1)
    assert (pickle.loads(pickle.dumps(dataset)).decode(1) == tile).all()


def test_open_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles, "LIMIT", 10)
    for number in range(20):
        _write(tmp_path / f"{number:02d}.h5", 2)
    opened: list[str] = []

    def record(path: str) -> h5py.File:
        opened.append(path)
        return h5py.File(path, "r")

    monkeypatch.setattr(h5_module, "_open", record)
    dataset = H5(str(tmp_path))
    assert opened == []
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for index in range(40):
            dataset.decode(index)
    assert len(os.listdir("/proc/self/fd")) - before <= 11
    assert len(opened) == 40  # each once a round


def _coordinates(file: h5py.File) -> None:
    file["coords"] = np.zeros((5, 2), dtype=np.int64)


def _features(file: h5py.File) -> None:
    file["features"] = np.zeros((5, 2), dtype=np.float32)


def _floats(file: h5py.File) -> None:
    file["img"] = np.zeros((2, 8, 8, 3), dtype=np.float32)


def _channels_first(file: h5py.File) -> None:
    file["img"] = np.zeros((2, 3, 8, 8), dtype=np.uint8)


def _group(file: h5py.File) -> None:
    file.create_group("img")


def _link(file: h5py.File) -> None:
    file["img"] = h5py.ExternalLink("/etc/passwd", "img")


def _huge(file: h5py.File) -> None:
    file.create_dataset("img", (1, 50_000, 50_000, 3), np.uint8, chunks=(1, 100, 100, 3))


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (_coordinates, r"x\.h5 holds coordinates only.*use Slides:manifest=slides.csv:coords=FOLDER"),
        (_features, r"no pixels under 'img' or 'imgs'; it holds features"),
        (_floats, r"'img' is float32 \(2, 8, 8, 3\); it must be uint8 \(N, H, W, 3\)"),
        (_channels_first, r"it must be uint8 \(N, H, W, 3\)"),
        (_group, "is a group"),
        (_link, "is a link to another file"),
        (_huge, "tiles of 50000 x 50000 px"),
    ],
)
def test_files_without_tiles_are_errors(tmp_path: Path, fill: object, message: str) -> None:
    _write(tmp_path / "good.h5", 2)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        fill(file)  # type: ignore[operator]
    with pytest.raises(DatasetError, match=message):
        H5(str(tmp_path))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"H5:root=.*looked for \.h5, \.hdf5"):
        H5(str(tmp_path))
    with pytest.raises(DatasetError, match="does not exist"):
        H5(str(tmp_path / "nowhere"))


def test_a_file_that_cannot_be_opened_is_one_bad_tile(tmp_path: Path) -> None:
    _write(tmp_path / "a.h5", 2)
    (tmp_path / "b.h5").write_bytes((tmp_path / "a.h5").read_bytes()[:700])
    (tmp_path / "c.h5").write_bytes(b"")
    dataset = H5(str(tmp_path))
    assert len(dataset) == 4
    for index, name in ((2, "b.h5/0"), (3, "c.h5/0")):
        with pytest.raises(BadTileError) as caught:
            dataset.decode(index)
        assert caught.value.path == f"{tmp_path}/{name}"
    (tmp_path / "a.h5").unlink()
    with pytest.raises(DatasetError, match="no readable tile in 2 files"):
        H5(str(tmp_path))


def test_unreadable_files_are_known_at_every_opening_and_stop_a_run(
    tmp_path: Path, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        _write(tmp_path / "in" / f"{number}.h5", 2)
    cut = tmp_path / "in" / "1.h5"
    cut.write_bytes(cut.read_bytes()[:700])
    for path in (tmp_path / "in", *(tmp_path / "in").iterdir()):
        os.utime(path, (1e9, 1e9))
    for _ in range(2):  # the second is a kept listing
        caplog.clear()
        dataset = H5(str(tmp_path / "in"))
        (record,) = caplog.records
        assert f"1 damaged: {cut} (OSError: " in record.getMessage()
    assert list(kept.glob("h5-*"))
    with pytest.raises(TooManyBadTilesError, match=r"1 of 4 files are damaged \(0 are tolerated\)"):
        refuse_damage(dataset, 0.24)
    refuse_damage(dataset, 0.25)
    (tmp_path / "in" / "x.h5").symlink_to("nowhere.h5")
    with pytest.raises(TooManyBadTilesError, match=r"1 of 5 files and links are damaged"):
        refuse_damage(H5(str(tmp_path / "in")), 0.19)


def test_a_damaged_chunk_is_one_bad_tile(tmp_path: Path) -> None:
    _write(tmp_path / "a.h5", 6, chunks=(1, 16, 20, 3), compression="gzip", fletcher32=True)
    with h5py.File(tmp_path / "a.h5") as file:
        place = file["img"].id.get_chunk_info(4).byte_offset
    content = bytearray((tmp_path / "a.h5").read_bytes())
    content[place + 30] ^= 0xFF
    (tmp_path / "a.h5").write_bytes(content)
    dataset = H5(str(tmp_path))
    for index in range(6):
        if index == 4:
            with pytest.raises(BadTileError, match=r"a\.h5/4: OSError"):
                dataset.decode(index)
        else:
            dataset.decode(index)
