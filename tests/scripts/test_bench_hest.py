"""The benchmark of the HEST evaluation: it runs on a tiny task, agrees with the published way, and says when not."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

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
    assert set(content["ratios"]) == {
        "synthetic: fit and predict 18 folds",
        "embedding from a plain file over the bare forward pass",
        "embedding from a gzip file over the bare forward pass",
    }


def test_a_wrong_result_is_an_error(hest, monkeypatch, capsys):
    monkeypatch.setattr(hest, "published_pcc", lambda *_: 0.9)
    assert hest.run(hest.program, [*OPTIONS, "--patches", "0"]) == 1
    assert "but 0.9000 the published way" in capsys.readouterr().err


def test_on_a_real_task_lsqr_must_agree_and_the_difference_of_the_exact_is_said(hest, monkeypatch):
    features, task = hest.synthetic(hest.Design(samples=4, studies=2, spots=400, features=16, genes=8))
    options = SimpleNamespace(device="cpu", repeats=1, threads=1, json=None)
    report = SimpleNamespace(rows=[], ratios={}, notes=[])
    report.note = report.notes.append
    hest.measure(report, options, "T", features, task, agrees="lsqr")
    assert [row["way"] for row in report.rows] == ["ours", "ours, --solver lsqr", "published"]
    assert set(report.ratios) == {"T: fit and predict 12 folds", "T, --solver lsqr: fit and predict 12 folds"}
    assert [note.partition(":")[0] for note in report.notes] == ["T, random", "T, loso"]
    published = hest.published_pcc(features, task, task.splits[0])
    monkeypatch.setattr(hest, "published_pcc", lambda *_: published + 0.1)
    with pytest.raises(hest.WrongResultError, match="T, --solver lsqr, random: mean PCC"):
        hest.measure(report, options, "T", features, task, agrees="lsqr")


def test_memory_holds_the_data_and_little_more(hest):
    from peak_memory import extra_bytes_here

    warm_up, call = hest.memory_case({"samples": 4, "spots": 20_000, "features": 100, "genes": 50, "studies": 2})
    used = extra_bytes_here(warm_up, call)
    data = 20_000 * (100 * 4 + 50 * 8)
    assert data < used < 6 * data
