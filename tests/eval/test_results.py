import csv
import json
import logging
import multiprocessing
import time

import pytest

from eval import results
from eval.errors import EvalError
from eval.protocol import METRICS
from eval.results import add_results, check_mergeable, merge, open_results, write_results

PCC = {"G1": {"mean": 0.4, "std": 0.2}, "G2": None}
SETTINGS = {"protocol": "hest-benchmark", "pca": 256}


def row(encoder="a", task="T", pcc=0.5, **changes):
    scores = {m: {"mean": pcc, "std": 0.1} for m in METRICS}
    base = {
        "encoder": encoder,
        "task": task,
        "protocol": "hest-benchmark",
        "split": "given",
        "pooling": "cls+mean",
        "weights_hash": "h",
        "encoder_key": "k",
        "encoder_settings": {"weights_hash": "h"},
        "data_hash": "d",
        "content_hash": "c",
        "folds": [{}],
        "genes": [{"gene": g, "mean": 1.0, "variance": 2.0, "pcc": p, "n_folds": 1} for g, p in PCC.items()],
        "notes": [],
    }
    return {**base, **scores, **changes}


def test_written_rows_are_read_back_and_merged(tmp_path):
    write_results(tmp_path, [row()], SETTINGS, {"command": "x"})
    rows = open_results(tmp_path, SETTINGS)
    assert rows == [row()]
    assert len(merge(rows, row(encoder="b"))) == 2
    assert merge(rows, row(pcc=0.6)) == [row(pcc=0.6)]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_csv_has_one_row_an_encoder_and_task(tmp_path):
    write_results(tmp_path, [row(), row("b", pcc=0.25)], SETTINGS, {})
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["encoder"] for r in rows] == ["a", "b"]
    assert (rows[1]["pcc_mean"], rows[1]["pcc_std"], rows[1]["n_genes"]) == ("0.25", "0.1", "2")


def test_table_of_genes(tmp_path):
    write_results(tmp_path, [row()], SETTINGS, {})
    with (tmp_path / "genes.csv").open() as file:
        genes = list(csv.DictReader(file))
    assert [g["gene"] for g in genes] == ["G1", "G2"]
    assert [(g["pcc_mean"], g["pcc_std"]) for g in genes] == [("0.4", "0.2"), ("", "")]


def test_meta_block(tmp_path):
    write_results(tmp_path, [row()], SETTINGS, {"command": "x"})
    meta = json.loads((tmp_path / "results.json").read_text())["meta"]
    assert meta["settings"] == SETTINGS
    assert meta["encoders"] == {"a": {"weights_hash": "h"}}
    assert {"python", "torch", "numpy", "scikit-learn"} <= meta["versions"].keys()
    assert meta["command"] == "x"


def test_another_setting_needs_force(tmp_path):
    write_results(tmp_path, [row()], SETTINGS, {})
    with pytest.raises(EvalError, match="pca 256 there, 64 now"):
        open_results(tmp_path, {**SETTINGS, "pca": 64})
    assert open_results(tmp_path, {**SETTINGS, "pca": 64}, force=True) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"results": []}'])
def test_a_foreign_file_needs_force(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(EvalError, match="not a results file"):
        open_results(tmp_path, SETTINGS)
    assert open_results(tmp_path, SETTINGS, force=True) == []


def test_other_data_under_the_same_name(tmp_path):
    check_mergeable([row()], tmp_path, "T", "given", "d", "c")
    check_mergeable([row()], tmp_path, "T", "loso", "e", "c")
    check_mergeable([row()], tmp_path, "U", "given", "e", "f")
    with pytest.raises(EvalError, match="results for T on other data"):
        check_mergeable([row()], tmp_path, "T", "given", "e", "c")
    with pytest.raises(EvalError, match="results for T on other data"):  # another set of samples, whatever the split
        check_mergeable([row()], tmp_path, "T", "loso", "e", "f")


def test_retrained_encoder_drops_its_old_rows_with_a_warning(caplog):
    rows = [row(task="T"), row(task="U"), row("b")]
    merge(rows, row(task="T"))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        merged = merge(rows, row(task="T", encoder_key="new"))
    assert [(r["encoder"], r["task"]) for r in merged] == [("b", "T"), ("a", "T")]
    assert "dropped: a on U (given)" in caplog.text
    caplog.clear()
    assert merge(rows[:2], row(task="T", encoder_key="new"), row(task="U", encoder_key="new"))
    assert not caplog.records  # all replaced


def add_slowly(out, encoder, read):
    """Add a row, long after having read what was there."""
    original = results.open_results

    def slow(*args, **kwargs):
        rows = original(*args, **kwargs)
        read.set()
        time.sleep(0.3)
        return rows

    results.open_results = slow
    add_results(out, [row(encoder)], SETTINGS, {})


def test_runs_at_the_same_time_keep_each_others_rows(tmp_path):
    context = multiprocessing.get_context("fork")
    read = context.Event()
    other = context.Process(target=add_slowly, args=(tmp_path, "a", read))
    other.start()
    assert read.wait(30)
    rows = add_results(tmp_path, [row("b")], SETTINGS, {})
    other.join()
    assert {r["encoder"] for r in rows} == {"a", "b"}


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "embeddings").mkdir()
    (tmp_path / "maps").mkdir()
    (tmp_path / ".results.json.123.tmp").write_text("{")  # a first write that was killed
    assert open_results(tmp_path, {}) == []
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(EvalError, match=r"holds other files \(metrics\.jsonl\)"):
        open_results(tmp_path, {})
    assert open_results(tmp_path, {}, force=True) == []
