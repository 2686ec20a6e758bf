import json

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
