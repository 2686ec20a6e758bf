import json
import re

import numpy as np
import pytest

from eval.compare import compare, load_rows, main
from eval.errors import EvalError
from eval.protocol import METRICS
from eval.results import write_results
from eval.statistics import holm


def row(encoder, pcc, data_hash="d", **changes):
    samples = [
        {"sample": f"s{i}", "patient": f"p{i}", "study": None, "n_spots": 9, "pcc": r, "mse": 1 - r}
        for i, r in enumerate(pcc)
    ]
    scores = {m: {"mean": float(np.mean(pcc)), "std": 0.0} for m in METRICS}
    base = {"encoder": encoder, "task": "T", "protocol": "hest-benchmark", "split": "given", "pooling": "cls"}
    more = {"weights_hash": "h", "encoder_key": encoder, "encoder_settings": {}, "data_hash": data_hash}
    return {**base, **more, **scores, "folds": [], "genes": [], "notes": [], "samples": samples, **changes}


BASE = np.array([0.2, 0.3, 0.25, 0.4, 0.35, 0.1, 0.2, 0.3])


@pytest.fixture
def folder(tmp_path):
    rows = [row("good", BASE + 0.1), row("bad", BASE), row("same", BASE + [0.01, -0.01] * 4)]
    write_results(tmp_path / "r", rows, {}, {})
    return tmp_path / "r"


def test_a_real_difference_is_found_and_chance_is_not(folder):
    scores, tests = compare(load_rows([folder]))
    assert scores[0]["encoder"] == "good"
    pairs = {(t["a"], t["b"]): t for t in tests}
    assert pairs["good", "bad"]["mean"] == pytest.approx(0.1)
    assert pairs["good", "bad"]["p"] == pytest.approx(2 / 2**8)
    assert pairs["bad", "same"]["p"] > 0.5
    assert [t["p_holm"] for t in tests] == holm([t["p"] for t in tests])


def test_a_reference_limits_the_tests_and_comes_second(folder):
    _, tests = compare(load_rows([folder]), reference="good")
    assert [(t["a"], t["b"]) for t in tests] == [("bad", "good"), ("same", "good")]
    with pytest.raises(EvalError, match="Nearest: good"):
        compare(load_rows([folder]), reference="goood")


def test_lower_mse_comes_first(folder):
    scores, _ = compare(load_rows([folder]), metric="mse")
    assert scores[0]["encoder"] == "good"


def test_encoders_of_two_folders_are_told_apart(folder, tmp_path):
    write_results(tmp_path / "q", [row("bad", BASE + 0.2)], {}, {})
    labels = {r["label"] for r in load_rows([folder, tmp_path / "q"])}
    assert labels == {"good", "same", "r/bad", "q/bad"}
    write_results(tmp_path / "o", [row("other", BASE, data_hash="e")], {}, {})
    with pytest.raises(EvalError, match="on different data"):
        load_rows([folder, tmp_path / "o"])


def test_folders_of_one_name_are_told_apart_by_their_parents(tmp_path):
    for parent, gain in (("x", 0.0), ("y", 0.1)):
        write_results(tmp_path / parent / "r", [row("a", BASE + gain)], {}, {})
    both = [tmp_path / "x" / "r", tmp_path / "y" / "r" / "results.json"]
    assert {r["label"] for r in load_rows(both)} == {"x/r/a", "y/r/a"}
    scores, _ = compare(load_rows(both))
    assert len(scores) == 2
    with pytest.raises(EvalError, match="given more than once"):
        load_rows([both[0], tmp_path / "y" / ".." / "x" / "r"])
    write_results(tmp_path / "z", [row("x/r/a", BASE)], {}, {})
    with pytest.raises(EvalError, match="both be called 'x/r/a'"):
        load_rows([*both, tmp_path / "z"])


def test_command_line(folder, tmp_path, capsys):
    assert main([str(folder), "--out", str(tmp_path / "c")]) == 0
    printed = capsys.readouterr().out
    assert "| T | given | good | bad | 8 | 0.1000" in printed
    assert len(json.loads((tmp_path / "c" / "compare.json").read_text())["tests"]) == 3
    assert len((tmp_path / "c" / "compare.csv").read_text().splitlines()) == 4
    assert main([str(tmp_path / "absent")]) == 2
    assert "no such results file" in capsys.readouterr().err


def test_few_units_are_said(tmp_path, capsys):
    write_results(tmp_path / "r", [row("a", BASE[:2]), row("b", BASE[:2] + 0.1)], {}, {})
    assert main([str(tmp_path / "r")]) == 0
    assert "with 2 unit(s) the smallest possible p is 0.5" in capsys.readouterr().out


def without_patient(found, sample):
    samples = [{**s, "patient": None} if s["sample"] == sample else s for s in found["samples"]]
    return {**found, "samples": samples}


def test_one_unit_for_all_encoders_of_a_task(tmp_path):
    rows = [row("a", BASE + 0.1), without_patient(row("b", BASE), "s3"), row("c", BASE, task="U")]
    write_results(tmp_path, rows, {}, {})
    scores, (test,) = compare(load_rows([tmp_path]))
    assert (test["units"], test["mean"], test["p"]) == (8, pytest.approx(0.1), pytest.approx(2 / 2**8))
    assert [(s["task"], s["unit"], s["units"]) for s in scores] == [("T", "sample", 8)] * 2 + [("U", "patient", 8)]
    with pytest.raises(EvalError, match="sample s3 has no patient"):
        compare(load_rows([tmp_path]), unit="patient")


def test_encoders_scored_on_different_samples(tmp_path, capsys):
    constant = row("b", BASE)
    constant["samples"][2]["pcc"] = None
    write_results(tmp_path / "r", [row("a", BASE + 0.1), constant], {}, {})
    assert main([str(tmp_path / "r"), "--out", str(tmp_path / "c")]) == 2
    assert re.search(r"error: b and a have a pcc on different samples: .* s2 \(patient p2\)\.", capsys.readouterr().err)
    assert not (tmp_path / "c").exists()
    assert main([str(tmp_path / "r"), "--metric", "mse"]) == 0
    other = row("b", BASE)
    other["samples"][0]["patient"] = "p1"  # as when the manifest has been corrected in between
    write_results(tmp_path / "q", [row("a", BASE), other], {}, {})
    with pytest.raises(EvalError, match=r"s0 \(patient p0\), s0 \(patient p1\)"):
        compare(load_rows([tmp_path / "q"]))
    assert len(compare(load_rows([tmp_path / "q"]), unit="sample")[1]) == 1


def test_different_settings_are_said_everywhere(tmp_path, capsys):
    for name, head, seed in (("x", "ridge", 0), ("y", "pls", 0)):
        rows = [row(name, BASE), row(name, BASE, task="U"), row(name, BASE, task=f"only {name}")]
        write_results(tmp_path / name, rows, {"head": head, "seed": seed}, {})
    assert main([str(tmp_path / "x"), str(tmp_path / "y"), "--out", str(tmp_path / "c")]) == 0
    note = 'settings differ too, not only encoders: head is "ridge" in x, "pls" in y; on T (given), U (given)'
    assert f"note: {note}." in capsys.readouterr().out
    assert f"note: {note}." in (tmp_path / "c" / "compare.md").read_text()
    assert json.loads((tmp_path / "c" / "compare.json").read_text())["notes"] == [note]
    assert main([str(tmp_path / "x"), "--out", str(tmp_path / "c")]) == 0
    assert json.loads((tmp_path / "c" / "compare.json").read_text())["notes"] == []
