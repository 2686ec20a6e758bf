"""The benchmark of the HEST evaluation: it runs on a tiny task, agrees with the published way, and says when not."""

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"
NAMES = ("common", "report", "peak_memory", "hest")


@pytest.fixture
def hest(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    yield importlib.import_module("hest")
    for name in NAMES:  # they are common words
        sys.modules.pop(name, None)


OPTIONS = ["--quick", "--threads", "1", "--no-memory", "--spots", "400", "--patches", "2"]


def test_both_ways_agree(hest, tmp_path):
    path = tmp_path / "hest.json"
    assert hest.run(hest.program, [*OPTIONS, "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    assert {"machine", "command", "rows", "ratios"} <= content.keys()
    ours, published = content["rows"][:2]
    assert (ours["way"], published["way"], ours["folds"]) == ("ours", "published", 18)
    assert ours["pcc"] == pytest.approx(published["pcc"], abs=0.005)
    assert set(content["ratios"]) == {"synthetic: fit and predict 18 folds", "embedding over the bare forward pass"}


def test_a_wrong_result_is_an_error(hest, monkeypatch, capsys):
    monkeypatch.setattr(hest, "published_pcc", lambda *_: 0.9)
    assert hest.run(hest.program, [*OPTIONS, "--patches", "0"]) == 1
    assert "but 0.9000 the published way" in capsys.readouterr().err


def test_memory_holds_the_data_and_little_more(hest):
    from peak_memory import extra_bytes_here

    warm_up, call = hest.memory_case({"samples": 4, "spots": 20_000, "features": 100, "genes": 50, "studies": 2})
    used = extra_bytes_here(warm_up, call)
    data = 20_000 * (100 * 4 + 50 * 8)
    assert data < used < 6 * data
