"""Tables that are mapped and listings that are kept: the same names, and no longer than they are true."""

import os
import pickle
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov2.data import index_cache
from dinov2.data.datasets import Folder, Tar, file_listing, h5, make_dataset, tar
from dinov2.data.errors import DatasetError
from dinov2.data.index_names import NameColumns, name_at
from dinov2.data.index_table import IndexTable
from dinov2.data.pack import main as pack

Names = list[str]


@settings(max_examples=50)
@given(names=st.lists(st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"])), min_size=1))
def test_names_come_back(names: Names) -> None:
    columns = NameColumns()
    for name in names:
        columns.append(name)
    blob, bounds = columns.columns()
    assert [name_at(blob, bounds, i) for i in range(len(columns))] == names
    for outside in (-1, len(names)):
        with pytest.raises(IndexError):
            name_at(blob, bounds, outside)


def test_names_that_are_not_utf8() -> None:
    name = os.fsdecode(b"tile\xff.png")
    columns = NameColumns()
    columns.append(name)
    assert name_at(*columns.columns(), 0) == name


def _table() -> IndexTable:
    columns = {
        "a": np.arange(7, dtype=np.uint8),
        "b": np.arange(5, dtype=np.int64) << 40,
        "c": np.arange(3, dtype=np.uint32),
    }
    return IndexTable(columns, {"kind": "x", "list": [1, "ä"]})


def _same(one: IndexTable, other: IndexTable) -> bool:
    return one.facts == other.facts and all((one.columns[k] == other.columns[k]).all() for k in one.columns)


def test_tables_are_mapped_and_pickle_as_a_name(tmp_path: Path) -> None:
    table = _table().save(tmp_path / "x.safetensors")
    assert _same(table, _table())
    assert not table.columns["b"].flags.writeable
    large = IndexTable({"a": np.zeros(10**6, dtype=np.int64)}, {}).save(tmp_path / "y.safetensors")
    content = pickle.dumps(large)
    assert len(content) < 500
    assert len(pickle.loads(content).columns["a"]) == 10**6
    assert _same(pickle.loads(pickle.dumps(_table())), _table())


def test_a_table_made_anew_in_between_is_noticed(tmp_path: Path) -> None:
    content = pickle.dumps(_table().save(tmp_path / "x.safetensors"))
    _table().save(tmp_path / "x.safetensors")  # by another process that starts at the same time
    assert _same(pickle.loads(content), _table())
    IndexTable({"a": np.arange(8)}, {}).save(tmp_path / "x.safetensors")
    with pytest.raises(DatasetError, match="made anew while the run was starting; start again"):
        pickle.loads(content)
    (tmp_path / "x.safetensors").unlink()
    with pytest.raises(DatasetError, match="cannot be opened in this worker"):
        pickle.loads(content)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]"])
def test_damaged_tables(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=r"is no index|Expecting value"):
        IndexTable.open(tmp_path / "x")


def test_truncated_table(tmp_path: Path) -> None:
    _table().save(tmp_path / "x")
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-5])
    with pytest.raises(ValueError, match="ends within column"):
        IndexTable.open(tmp_path / "x")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of listings; ones of two items or more are kept."""
    monkeypatch.setenv("DINOV2_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "MIN_KEPT", 2)
    return tmp_path / "cache" / "index"


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The roots that are listed."""
    roots: list[str] = []
    make = file_listing._list

    def record(kind: str, root: str, suffixes: tuple[str, ...]) -> IndexTable:
        roots.append(root)
        return make(kind, root, suffixes)

    monkeypatch.setattr(file_listing, "_list", record)
    return roots


def _age(folder: Path) -> None:
    """As if nothing had changed for a minute."""
    then = time.time() - 60
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (then, then))


def _names(folder: Folder) -> Names:
    return [folder.name(i) for i in range(len(folder))]


def test_a_listing_is_kept_until_the_folder_changes(tiles: Path, cache: Path, listings: Names) -> None:
    (tiles / "more").mkdir()
    _age(tiles)
    names = _names(Folder(str(tiles)))
    assert len(list(cache.glob("folder-*.safetensors"))) == 1
    assert len(listings) == 1
    assert _names(Folder(str(tiles))) == names
    assert len(listings) == 1  # from the listing
    (tiles / "tile_000.png").rename(tiles / "more" / "new.png")
    assert _names(Folder(str(tiles), refresh="never")) == names
    assert len(listings) == 1
    assert _names(Folder(str(tiles))) == ["more/new.png", *names[1:]]
    assert len(listings) == 2
    _age(tiles)
    Folder(str(tiles))  # the times changed
    Folder(str(tiles), refresh="always")
    assert len(listings) == 4
    assert len(list(cache.iterdir())) == 1


def test_a_folder_that_has_only_just_changed_is_listed_again(tiles: Path, cache: Path, listings: Names) -> None:
    for _ in range(2):
        Folder(str(tiles))
    assert len(listings) == 2
    assert list(cache.iterdir())


def test_small_listings_are_not_kept(tiles: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_cache, "MIN_KEPT", 21)
    Folder(str(tiles))
    assert not cache.exists()


def test_damaged_listings_are_made_anew(tiles: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    _age(tiles)
    names = _names(Folder(str(tiles)))
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:50])
    assert _names(Folder(str(tiles))) == names
    assert "is made anew" in caplog.text
    assert _names(Folder(str(tiles), refresh="never")) == names


def test_a_cache_that_cannot_be_written(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    _age(tiles)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("DINOV2_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(index_cache.tempfile, "gettempdir", lambda: str(tmp_path / "spare"))
    (tmp_path / "spare").write_bytes(b"")
    with pytest.raises(DatasetError, match="set DINOV2_CACHE_DIR to one that can be written"):
        Folder(str(tiles))
    (tmp_path / "spare").unlink()
    Folder(str(tiles))
    assert list((tmp_path / "spare").glob("dinov2-pathology-*/index/folder-*.safetensors"))


def test_unknown_refresh(tiles: Path) -> None:
    with pytest.raises(DatasetError, match="refresh=alway; did you mean 'always'"):
        Folder(str(tiles), refresh="alway")


@pytest.mark.parametrize("kind", ["tar", "h5"])
def test_containers_are_looked_into_once(
    tiles: Path, tmp_path: Path, cache: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pack([f"Folder:{tiles}", "--out", str(tmp_path / "out"), "--format", kind, "--shard-size", "8"]) == 0
    _age(tmp_path / "out")
    module = {"tar": tar, "h5": h5}[kind]
    name = {"tar": "index_tars", "h5": "index_h5"}[kind]
    index, made = getattr(module, name), []
    monkeypatch.setattr(module, name, lambda paths: (made.append(paths), index(paths))[1])
    spec = {"tar": f"Tar:shards={tmp_path}/out/*.tar", "h5": f"H5:root={tmp_path}/out"}[kind]
    first, second = make_dataset(spec), make_dataset(spec)
    assert len(made) == 1
    assert [first.path(i) for i in range(20)] == [second.path(i) for i in range(20)]
    assert all((first.decode(i) == second.decode(i)).all() for i in range(20))


def test_shards_are_indexed_again_when_they_change(tiles: Path, tmp_path: Path, cache: Path) -> None:
    def write(count: int) -> None:
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            for path in sorted(tiles.iterdir())[:count]:
                archive.add(path, path.name)
        os.utime(tmp_path / "x.tar", (time.time() - 60,) * 2)

    write(4)
    assert len(Tar(str(tmp_path / "x.tar"))) == 4
    write(6)
    assert len(Tar(str(tmp_path / "x.tar"))) == 6
    assert list(cache.glob("tar-*"))
