"""The benchmark of data sets: decoders agree, and a synthetic listing is found again."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


@pytest.fixture(scope="module")
def data_index() -> Iterator[ModuleType]:
    """The program, imported as `python scripts/bench/data_index.py` does."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module("data_index")
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCH)):
            del sys.modules[name]  # their names are common words


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_decoding(data_index: ModuleType, tmp_path: Path) -> None:
    run = sys.modules["common"].run
    assert run(data_index.program, ["--quick", "--threads", "1", "--json", str(tmp_path / "x.json"), "--paths"]) == 0
    content = json.loads((tmp_path / "x.json").read_text())
    assert {"machine", "command", "rows", "ratios"} <= set(content)
    assert {(row["what"], row["name"]) for row in content["rows"]} == {
        (f"decode {kind}", name) for kind in ("JPEG", "PNG") for name in ("ours", "Pillow", "torchvision")
    }
    assert all(row["images_per_s"] > 0 for row in content["rows"])
    assert content["ratios"]["decode JPEG: images/s, ours over Pillow"] > 0


def test_listings(data_index: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOV2_CACHE_DIR", str(tmp_path / "cache"))
    root, text = data_index.make_listing(tmp_path, 20_500)
    assert len(list((tmp_path / "cache" / "index").iterdir())) == 1
    worker = importlib.import_module("index_worker")
    paths = text.read_text().splitlines()
    find = worker.open_ours(str(root))
    assert {find(position) for position in range(20_500)} == set(paths)
    assert worker.main("ours", str(root), 10).keys() == worker.main("list", str(text), 10).keys()


def test_a_loader_s_worker(data_index: ModuleType, tmp_path: Path, tiles: Path) -> None:
    command = ["--quick", "--threads", "1", "--json", str(tmp_path / "x.json"), "--paths", "--loader"]
    assert sys.modules["common"].run(data_index.program, [*command, f"Folder:root={tiles}"]) == 0
    (row,) = [row for row in json.loads((tmp_path / "x.json").read_text())["rows"] if row["what"] == "loader worker"]
    assert (row["name"], row["tiles"]) == ("Folder", 12)
    assert 0 < row["worker_private_mib"] <= row["worker_resident_mib"]


def test_impossible_sizes(data_index: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert sys.modules["common"].run(data_index.program, ["--quick", "--threads", "1", "--paths", "0"]) == 2
    assert "must be positive" in capsys.readouterr().err
