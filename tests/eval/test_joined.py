import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from eval.errors import EvalError
from eval.hest import main
from eval.hest_run import Work, run
from eval.joined import join_results
from eval.results import read_results
from eval.settings import FitSettings
from eval.task_table import task_table

SCHEMA = Path(__file__).resolve().parents[2] / "eval" / "results.schema.json"
QUIET = Work(progress=False, device="cpu")


@pytest.fixture
def two(bench, tmp_path):
    """Two results folders, one encoder each, of different poolings, on the same two tasks."""
    shutil.copytree(bench / "TOY", bench / "TOY2")
    tasks = ["TOY", "TOY2"]
    run(["color-stats"], bench, tasks, tmp_path / "a", work=QUIET)
    (tmp_path / "made").mkdir()
    for i, name in enumerate("ABC"):
        np.save(tmp_path / "made" / f"{name}.npy", np.random.default_rng(i).normal(size=(24, 6)))
    run([f"precomputed:{tmp_path / 'made'}"], bench, tasks, tmp_path / "b", pooling="mean", work=QUIET)
    return [tmp_path / "a", tmp_path / "b"]


def test_many_folders_become_one(two, tmp_path, capsys):
    out = tmp_path / "joint"
    for _ in range(2):  # the second replaces the first
        assert main(["report", *map(str, two), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    found = read_results(out)
    by_hand = {(r["encoder"], r["task"]): r["pcc"]["mean"] for folder in two for r in read_results(folder)["results"]}
    assert {(r["encoder"], r["task"]): r["pcc"]["mean"] for r in found["results"]} == by_hand
    mean = (by_hand["color-stats", "TOY"] + by_hand["color-stats", "TOY2"]) / 2
    (line,) = (x for x in printed.splitlines()[-30:] if x.startswith("| color-stats") and x.count("|") == 5)
    assert line.endswith(f"| **{mean:.3f}** |")
    assert found["meta"]["settings"]["pooling"] == "cls+mean, mean"
    page = (out / "report.html").read_text()
    assert "All tasks" in page
    assert f"<td class='best'>{mean:.3f}</td>" in page
    assert sorted(p.name for p in (out / "maps").iterdir()) == sorted(
        p.name for folder in two for p in (folder / "maps").iterdir()
    )
    jsonschema = pytest.importorskip("jsonschema", reason="checks the schema")
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))


def test_an_encoder_of_both_folders_has_two_names(bench, two, tmp_path):
    run(["color-stats"], bench, ["TOY"], two[1], pooling="mean", work=QUIET)
    rows = join_results(two, tmp_path / "joint")
    assert {r["encoder"] for r in rows} == {"a/color-stats", "b/color-stats", f"precomputed:{tmp_path / 'made'}"}


def test_what_cannot_be_joined(bench, two, tmp_path):
    out = tmp_path / "joint"
    with pytest.raises(EvalError, match="one of the folders to join"):
        join_results(two, two[0] / ".." / "b")
    run(["color-stats"], bench, ["TOY"], tmp_path / "c", work=QUIET)
    with pytest.raises(EvalError, match="holds the results of a run"):
        join_results(two, tmp_path / "c")
    run(["color-stats"], bench, ["TOY"], tmp_path / "d", fit=FitSettings(pca=5), work=QUIET)
    with pytest.raises(EvalError, match=r"d: pca 5, but 256 in .*a\. Joint tables have one setting"):
        join_results([two[0], tmp_path / "d"], out)
    panel = bench / "TOY" / "var_50genes.json"
    panel.write_text(json.dumps({"genes": ["GREEN", "RED"]}))
    run(["color-stats"], bench, ["TOY"], tmp_path / "e", work=QUIET)
    with pytest.raises(EvalError, match="different data"):
        join_results([two[1], tmp_path / "e"], out)
    assert not out.exists()


def test_a_retrained_encoder_is_not_joined_with_itself(two, tmp_path):
    content = read_results(two[0])
    for row in content["results"]:
        row["task"] += " of old"
        row["encoder_key"] = "other"
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").write_text(json.dumps(content))
    with pytest.raises(EvalError, match="encoder color-stats: its weights or settings differ"):
        join_results([two[0], tmp_path / "old"], tmp_path / "joint")


def test_table_of_tasks_by_hand():
    rows = [
        {"encoder": e, "task": t, "split": s, "pcc": {"mean": p, "std": 0.1}}
        for e, t, s, p in [
            ("a", "T1", "random", 0.5), ("a", "T2", "random", 0.1), ("b", "T1", "random", 0.4),
            ("b", "T2", "random", 0.4), ("c", "T1", "random", 0.9), ("b", "T1", "loso", 0.2),
        ]
    ]  # fmt: skip
    header, body = task_table(rows)
    assert header == ["Model", "Split", "T1", "T2", "Mean"]
    assert body == [
        ["b", "Random", "0.400±0.100", "0.400±0.100*", "0.400*"],
        ["a", "Random", "0.500±0.100", "0.100±0.100", "0.300"],
        ["c", "Random", "0.900±0.100*", "-", "-"],
        ["b", "LOSO", "0.200±0.100", "-", "-"],
    ]
