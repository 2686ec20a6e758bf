"""Tiles in tar shards: the same bytes as in files, also from damaged archives."""

import gc
import io
import logging
import os
import pickle
import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

from dinov2.data.datasets import EncodedTiles, Folder, Tar, TileDataset, make_dataset
from dinov2.data.datasets.damage import refuse_damage
from dinov2.data.errors import BadTileError, DatasetError, TooManyBadTilesError
from dinov2.data.loaders import make_loader
from dinov2.utils.schema import CropsSection, IbotSection

Make = Callable[..., Path]


@pytest.fixture
def shards(tiles: Path, tmp_path: Path) -> Path:
    """The pattern of four shards of five tiles each, with labels beside them."""
    files = sorted(tiles.iterdir())
    for number in range(4):
        with tarfile.open(tmp_path / f"t-{number:03d}.tar", "w") as archive:
            for path in files[5 * number : 5 * number + 5]:
                archive.add(path, f"slide{number}/{path.name}")
                _add(archive, f"slide{number}/{path.stem}.cls", b"3")
    return tmp_path / "t-{000..003}.tar"


def _add(archive: tarfile.TarFile, name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    archive.addfile(info, io.BytesIO(content))


def _write(path: Path, members: dict[str, bytes], **options: object) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members.items():
            _add(archive, name, content)
    return path


def test_tiles_are_those_of_the_folder(shards: Path, tiles: Path) -> None:
    dataset, folder = make_dataset(f"Tar:shards={shards}"), Folder(str(tiles))
    assert isinstance(dataset, TileDataset)
    assert isinstance(dataset, EncodedTiles)
    assert len(dataset) == 20
    for index in (0, 19, 7, 7):
        assert torch.equal(dataset.decode(index), folder.decode(index))
        assert dataset.encoded(index) == folder.encoded(index)
    assert dataset.path(7).endswith("t-001.tar/slide1/tile_007.png")
    with pytest.raises(IndexError):
        dataset.path(20)


def test_survives_pickling_with_open_files(shards: Path) -> None:
    dataset = Tar(str(shards))
    tile = dataset.decode(3)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again.decode(3), tile)
    assert again.path(3) == dataset.path(3)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_workers_leave_no_open_file_behind(shards: Path, small_crops: CropsSection) -> None:
    def load() -> int:
        dataset = Tar(str(shards))
        options = {"patch_size": 8, "global_batch_size": 4, "seed": 0, "num_workers": 2}
        assert len(list(islice(make_loader(dataset, small_crops, IbotSection(), **options), 6))) == 6  # type: ignore[arg-type]
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    first = load()
    assert load() <= first


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_forms_and_long_names(tmp_path: Path, tiles: Path, form: int) -> None:
    content = (tiles / "tile_000.png").read_bytes()
    name = "/".join(["folder"] * 12) + "/" + "x" * 60 + ".PNG"
    dataset = Tar(str(_write(tmp_path / "x.tar", {name: content}, format=form)))
    assert dataset.path(0) == f"{tmp_path}/x.tar/{name}"
    assert dataset.encoded(0) == content


def test_other_members_are_passed_over(tmp_path: Path, tiles: Path) -> None:
    content = (tiles / "tile_000.png").read_bytes()
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        _add(archive, "folder.png", b"", tarfile.DIRTYPE)
        _add(archive, "link.png", b"", tarfile.SYMTYPE)
        _add(archive, "a/._hidden.png", content)
        _add(archive, "a/b.png", content)
    assert [Tar(str(tmp_path / "x.tar")).name(0)] == ["a/b.png"]
    assert len(Tar(str(tmp_path / "x.tar"))) == 1


def test_of_members_with_one_name_the_last_counts(
    tmp_path: Path, tiles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = ((tiles / f"tile_00{i}.png").read_bytes() for i in range(3))
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, content in (("a.png", first), ("b.png", second), ("a.png", third)):
            _add(archive, name, content)
        _add(archive, "link.png", b"", tarfile.LNKTYPE)
    dataset = Tar(str(tmp_path / "x.tar"))
    assert [dataset.encoded(i) for i in range(len(dataset))] == [second, third]
    assert "2 skipped: " in caplog.text
    assert "x.tar/a.png (an earlier member of this name), " in caplog.text
    assert "x.tar/link.png (no regular file)" in caplog.text


def test_a_shard_named_twice_is_read_once(shards: Path) -> None:
    folder = shards.parent
    (folder / "t-009.tar").symlink_to(folder / "t-000.tar")
    assert len(Tar(f"{folder}/t-*.tar")) == 20


@pytest.mark.parametrize("share", [0.2, 0.5, 0.83])
def test_a_cut_tar_keeps_its_complete_members(
    tmp_path: Path, tiles: Path, share: float, caplog: pytest.LogCaptureFixture
) -> None:
    members = {path.name: path.read_bytes() for path in sorted(tiles.iterdir())}
    whole = _write(tmp_path / "x.tar", members).read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[: int(share * len(whole)) // 512 * 512 - 100])
    with caplog.at_level(logging.WARNING, "dinov2"):
        dataset = Tar(str(tmp_path / "x.tar"))
    (record,) = caplog.records
    assert "is cut off within tile_" in record.getMessage()
    n = len(dataset)
    assert 2 < n < 20
    assert [dataset.encoded(i) for i in range(n - 1)] == list(members.values())[: n - 1]
    with pytest.raises(BadTileError, match="cut off within it"):
        dataset.decode(n - 1)


def test_a_damaged_header_ends_the_archive_with_a_warning(
    tmp_path: Path, tiles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = (tiles / "tile_000.png").read_bytes()
    path = _write(tmp_path / "x.tar", dict.fromkeys(("a.png", "b.png", "c.png"), content))
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"b.png") + 120] ^= 0xFF
    path.write_bytes(whole)
    with caplog.at_level(logging.WARNING, "dinov2"):
        assert len(Tar(str(path))) == 1
    assert "cut off or damaged at byte" in caplog.text


def test_a_tar_without_its_end_is_whole_but_said(tmp_path: Path, tiles: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = (tiles / "tile_000.png").read_bytes()
    path = _write(tmp_path / "x.tar", {"a.png": content})
    path.write_bytes(path.read_bytes()[: 512 + -(-len(content) // 512) * 512])
    with caplog.at_level(logging.WARNING, "dinov2"):
        assert Tar(str(path)).encoded(0) == content
    assert "cut off" in caplog.text


def _tars(folder: Path, tiles: Path, count: int) -> list[Path]:
    members = {path.name: path.read_bytes() for path in sorted(tiles.iterdir())[:4]}
    return [_write(folder / f"x-{number}.tar", members | {"last.cls": b"3" * 600}) for number in range(count)]


@pytest.mark.parametrize("harm", ["header", "inside a label", "between blocks"])
def test_damaged_shards_are_known_at_every_opening_and_stop_a_run(
    tmp_path: Path, tiles: Path, small_crops: CropsSection, kept: Path, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    paths = _tars(tmp_path, tiles, 4)
    whole = bytearray(paths[1].read_bytes())
    label = whole.index(b"last.cls")
    whole[whole.index(b"tile_001") + 120] ^= 0xFF if harm == "header" else 0
    paths[1].write_bytes({"header": whole, "inside a label": whole[: label + 700]}.get(harm, whole[:label]))
    for path in paths:
        os.utime(path, (1e9, 1e9))
    for _ in range(2):  # the second is a kept listing
        caplog.clear()
        dataset = Tar(f"{tmp_path}/x-*.tar")
        assert len(dataset) == (13 if harm == "header" else 16)
        (record,) = caplog.records
        assert f"1 damaged: {paths[1]} (the archive is cut off" in record.getMessage()
    assert list(kept.glob("tar-*"))
    options = {"patch_size": 8, "global_batch_size": 4, "seed": 0}
    with pytest.raises(TooManyBadTilesError, match=r"1 of 4 shards are damaged \(0 are tolerated\):\n.*x-1\.tar \("):
        make_loader(dataset, small_crops, IbotSection(), max_bad_fraction=0.24, **options)  # type: ignore[arg-type]
    make_loader(dataset, small_crops, IbotSection(), max_bad_fraction=0.25, **options)  # type: ignore[arg-type]
    (tmp_path / "mix.yaml").write_text(
        f"datasets: [{{spec: 'Folder:root={tiles}'}}, {{spec: 'Tar:{tmp_path}/x-*.tar'}}]"
    )
    with pytest.raises(TooManyBadTilesError, match="1 of 4 shards"):
        refuse_damage(make_dataset(f"Mix:{tmp_path}/mix.yaml"), 0.24)


def test_a_tar_that_shrinks_later_is_a_bad_tile(shards: Path) -> None:
    dataset = Tar(str(shards))
    (shards.parent / "t-000.tar").write_bytes(b"")
    with pytest.raises(BadTileError, match="become shorter"):
        dataset.decode(0)
    (shards.parent / "t-001.tar").unlink()
    with pytest.raises(BadTileError, match="FileNotFoundError"):
        dataset.decode(5)


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_compressed_tars_are_refused(tmp_path: Path, tiles: Path, mode: str) -> None:
    with tarfile.open(tmp_path / "x.tar", f"w:{mode}") as archive:
        archive.add(tiles, "tiles")
    with pytest.raises(DatasetError, match=r"x\.tar is compressed"):
        Tar(str(tmp_path / "x.tar"))


@pytest.mark.parametrize("name", ["../escape.png", "/etc/tile.png", "a/../../b.png"])
def test_names_that_lead_out_are_refused(tmp_path: Path, tiles: Path, name: str) -> None:
    path = _write(tmp_path / "x.tar", {name: (tiles / "tile_000.png").read_bytes()})
    with pytest.raises(DatasetError, match="names must be relative"):
        Tar(str(path))


@pytest.mark.parametrize("content", [b"", b"no archive", b"x" * 5000])
def test_what_is_no_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DatasetError, match=r"x\.tar is no tar archive"):
        Tar(str(tmp_path / "x.tar"))


def test_no_image(tmp_path: Path) -> None:
    _write(tmp_path / "x.tar", {"a.txt": b"x"})
    with pytest.raises(DatasetError, match="no image in 1 files"):
        Tar(str(tmp_path / "x.tar"))


def test_a_negative_size_does_not_loop(tmp_path: Path, tiles: Path) -> None:
    info = tarfile.TarInfo("a.png")
    info.pax_headers = {"size": "-1024"}
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        _add(archive, "ok.png", (tiles / "tile_000.png").read_bytes())
        archive.addfile(info)
    assert Tar(str(tmp_path / "x.tar")).name(0) == "ok.png"
