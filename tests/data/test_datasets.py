"""Data set strings, the folder and the decoder."""

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dinov2.data import index_cache
from dinov2.data.datasets import Folder, TileDataset, list_datasets, make_dataset, register_dataset
from dinov2.data.datasets import registry as registry_module
from dinov2.data.datasets.damage import refuse_damage
from dinov2.data.errors import DatasetError, TooManyBadTilesError

WriteTiles = Callable[..., list[Path]]


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a test registers."""
    monkeypatch.setattr(registry_module, "_FACTORIES", dict(registry_module._FACTORIES))


def test_folder_finds_every_suffix_at_any_depth_in_sorted_order(tmp_path: Path) -> None:
    names = ["b/2.PNG", "b/10.jpg", "a.tif", "b/c/d/x.TIFF", "z.jpeg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    for ignored in (".hidden.png", ".cache/x.png", "notes.txt", "b/x.png.tmp"):
        (tmp_path / ignored).parent.mkdir(exist_ok=True)
        (tmp_path / ignored).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    dataset = make_dataset(f"Folder:root={tmp_path}")
    found = [str(Path(dataset.path(i)).relative_to(tmp_path)) for i in range(len(dataset))]
    assert found == ["a.tif", "b/10.jpg", "b/2.PNG", "b/c/d/x.TIFF", "z.jpeg"]
    assert isinstance(dataset, TileDataset)
    assert all(dataset.decode(i).shape == (3, 4, 4) for i in range(len(dataset)))


def test_folder_reads_linked_folders_once_and_survives_loops(
    tmp_path: Path, write_tiles: WriteTiles, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINOV2_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "MIN_KEPT", 1)
    write_tiles(tmp_path / "elsewhere", 2)
    root = tmp_path / "root"
    write_tiles(root / "real", 1)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    (root / "real" / "up").symlink_to(root)
    (root / "broken.png").symlink_to(tmp_path / "nothing.png")
    (root / "broken_folder").symlink_to(tmp_path / "nothing")
    (root / os.fsdecode(b"\xff.png")).symlink_to("nowhere")
    for refresh in ("always", "never"):  # the second is a kept listing
        caplog.clear()
        assert len(Folder(str(root), refresh)) == 3
        (message,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
        assert "5 skipped: " in message
        for text in ("/broken.png (a link", "/broken_folder (a link", "/loop (a folder", "/up (a folder", "\\xff.png"):
            assert text in message


def test_broken_links_stop_a_run_as_bad_tiles_do(tmp_path: Path, write_tiles: WriteTiles) -> None:
    write_tiles(tmp_path, 18)
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "a.png").symlink_to(tmp_path / "nothing.png")
    dataset = Folder(str(tmp_path))
    refuse_damage(dataset, 0.01)
    with pytest.raises(TooManyBadTilesError, match=r"1 of 19 files are damaged \(0 are tolerated\)"):
        refuse_damage(dataset, 0.0)
    (tmp_path / "b.png").symlink_to(tmp_path / "b.png")
    with pytest.raises(TooManyBadTilesError, match=r"2 of 20 files .*:\n.*a.png \(a link that leads nowhere"):
        refuse_damage(Folder(str(tmp_path)), 0.05)


def test_folder_passes_over_links_to_themselves(tmp_path: Path, write_tiles: WriteTiles) -> None:
    write_tiles(tmp_path, 1)
    (tmp_path / "a.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "c.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "b.png")
    assert len(Folder(str(tmp_path))) == 1


def test_folder_that_cannot_be_listed(tmp_path: Path, write_tiles: WriteTiles, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiles(tmp_path, 1)

    def refuse(path: str) -> object:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DatasetError, match=r"cannot be listed: .*Permission denied"):
        Folder(str(tmp_path))


def test_indices_are_checked(tiles: Path) -> None:
    for index in (-1, 20):
        with pytest.raises(IndexError, match=r"not in 0 \.\. 19"):
            Folder(str(tiles)).decode(index)


def test_imagenet_reads_one_split(tmp_path: Path, write_tiles: WriteTiles) -> None:
    write_tiles(tmp_path / "train" / "n01440764", 2)
    write_tiles(tmp_path / "val" / "n01440764", 3)
    assert len(make_dataset(f"ImageNet:split=TRAIN:root={tmp_path}:extra={tmp_path}/extra")) == 2
    assert len(make_dataset(f"ImageNet:split=VAL:root={tmp_path}:extra=")) == 3
    with pytest.raises(DatasetError, match="split=TRIAN; did you mean 'TRAIN'"):
        make_dataset(f"ImageNet:split=TRIAN:root={tmp_path}")
    with pytest.raises(DatasetError, match="test does not exist"):
        make_dataset(f"ImageNet:split=TEST:root={tmp_path}")


def test_the_first_key_may_be_left_out(tiles: Path) -> None:
    assert len(make_dataset(f"Folder:{tiles}:refresh=never")) == 20


def test_folder_survives_pickling(tiles: Path) -> None:
    dataset = Folder(str(tiles))
    again = pickle.loads(pickle.dumps(dataset))
    assert [again.path(i) for i in range(len(again))] == [dataset.path(i) for i in range(len(dataset))]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere does not exist"):
        make_dataset(f"Folder:root={tmp_path}/nowhere")


def test_file_in_place_of_folder(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(DatasetError, match="is not a folder"):
        make_dataset(f"Folder:root={tmp_path}/x.png")


def test_empty_folder_says_what_it_looked_for(tmp_path: Path) -> None:
    (tmp_path / "slide.svs").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"\.png, \.jpg, \.jpeg, \.tif, \.tiff"):
        make_dataset(f"Folder:root={tmp_path}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("Foldr:root=x", r"'Foldr'; did you mean 'Folder'"),
        ("folder:root=x", r"'folder'; did you mean 'Folder'"),
        ("", "known: Folder, H5, ImageNet, Mix, Slides, Tar"),
        ("/data/tiles", "KIND:key=value"),
        ("Folder:rot=x", r"no key 'rot'; did you mean 'root'"),
        ("Folder", r"needs root\. Write Folder:root="),
        ("Folder:", "'' is not key=value"),
        ("Folder:root=a:root=b", "'root' twice"),
        ("Folder:root=", "the value of 'root' is empty"),
        ("Folder:root=x:refresh= ", "the value of 'refresh' is empty"),
        ("Slides:manifest=:coords=x", "the value of 'manifest' is empty"),
    ],
)
def test_wrong_strings(spec: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        make_dataset(spec)


@pytest.mark.usefixtures("clean_registry")
def test_packages_add_kinds_by_entry_points(tmp_path: Path, tiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tiles.py").write_text(
        "from dinov2.data.datasets import Folder\n\nimported = []\n\n\n"
        "class Mine(Folder):\n    def __init__(self, where):\n        super().__init__(where)\n"
    )
    metadata = tmp_path / "my_tiles-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-tiles\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[dinov2.datasets]\nMine = my_tiles:Mine\nBroken = my_tiles_nowhere:X\nNothing = my_tiles:imported\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert {"Mine", "Broken", "Folder"} <= set(list_datasets())
    assert "my_tiles" not in sys.modules
    assert len(make_dataset(f"Folder:root={tiles}")) == 20
    assert "my_tiles" not in sys.modules
    for _ in range(2):
        assert len(make_dataset(f"Mine:where={tiles}")) == 20
    monkeypatch.delitem(sys.modules, "my_tiles")
    with pytest.raises(DatasetError, match="did you mean 'Mine'"):
        make_dataset("Mien:where=x")
    with pytest.raises(DatasetError, match=r"'Broken' of my_tiles_nowhere:X \(my-tiles\) cannot be imported: Module"):
        make_dataset("Broken:")
    with pytest.raises(DatasetError, match=r"is \[\], no class or function"):
        make_dataset("Nothing:")


def test_values_may_contain_colons(tmp_path: Path, write_tiles: WriteTiles) -> None:
    write_tiles(tmp_path / "a:b", 1)
    assert len(make_dataset(f"Folder:root={tmp_path}/a:b")) == 1


@pytest.mark.usefixtures("clean_registry")
def test_third_parties_can_register(tiles: Path) -> None:
    @register_dataset("Twice")
    class Twice(Folder):
        def __len__(self) -> int:
            return 2 * super().__len__()

    assert "Twice" in list_datasets()
    assert len(make_dataset(f"Twice:root={tiles}")) == 40
    with pytest.raises(ValueError, match="registered already"):
        register_dataset("Twice")(Twice)
