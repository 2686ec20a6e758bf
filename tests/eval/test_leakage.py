import json

import pandas as pd
import pytest

from eval.embed import embed_task
from eval.encoders import ColorStats
from eval.errors import EvalError
from eval.hest import main
from eval.hest_data import load_task
from eval.leakage import find_leaks, guard
from eval.protocol import evaluate
from eval.settings import FitSettings


def leaks(bench):
    task = load_task(bench, "TOY")
    return {leak.kind: leak.text for leak in find_leaks(task, task.splits[0])}


def separate_patients(bench):
    table = pd.DataFrame({"sample_id": list("ABC"), "patient": ["1", "2", "3"]})
    table.to_csv(bench / "TOY" / "samples.csv", index=False)


def test_unknown_patients_are_said_and_refused(bench, tmp_path):
    (bench / "TOY" / "samples.csv").unlink()
    task = load_task(bench, "TOY")
    text = "patients unknown for 3 of 3 samples"
    assert text in leaks(bench)["patients unknown"]
    (evaluation,) = evaluate(embed_task(ColorStats(), task, tmp_path, progress=False).features, task, FitSettings())
    assert any(text in note for note in evaluation.record["notes"])
    assert [leak["kind"] for leak in evaluation.record["leaks"]] == ["patients unknown"]
    assert len(guard([task], strict=False)) == 1
    with pytest.raises(EvalError, match=text):
        guard([task], strict=True)


def test_one_unknown_patient_is_named(bench):
    pd.DataFrame({"sample_id": ["A", "C"], "patient": ["1", "2"]}).to_csv(bench / "TOY" / "samples.csv", index=False)
    assert "1 of 3 samples (B)" in leaks(bench)["patients unknown"]


def test_known_patients_on_one_side_are_no_leak(bench):
    assert list(leaks(bench)) == ["patient in training"]  # A and B are of patient 1
    separate_patients(bench)
    assert leaks(bench) == {}
    assert guard([load_task(bench, "TOY")], strict=True) == []


@pytest.mark.parametrize(
    ("seen", "said"),
    [(["A", "B", "C"], "3 of 3 held-out"), (["C", "Z"], "1 of 3 held-out"), (["Z"], None), (None, None)],
)
def test_a_panel_that_says_what_it_has_seen(bench, tmp_path, seen, said):
    separate_patients(bench)
    path = bench / "TOY" / "var_50genes.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chosen_over": seen}))
    found = leaks(bench)
    assert (said in found["genes"]) if said else found == {}
    task = load_task(bench, "TOY")
    (evaluation,) = evaluate(embed_task(ColorStats(), task, tmp_path, progress=False).features, task, FitSettings())
    assert any("is not known" in note for note in evaluation.record["notes"]) == (seen is None)


def test_a_panel_that_says_it_badly(bench, capsys, tmp_path):
    path = bench / "TOY" / "var_50genes.json"
    path.write_text(json.dumps({"genes": ["RED"], "chosen_over": "all"}))
    base = ["--bench-root", str(bench), "--tasks", "TOY", "--encoder", "color-stats", "--out", str(tmp_path / "o")]
    assert main(base) == 2
    assert "'chosen_over' is 'all'; it must be a list of sample names" in capsys.readouterr().err


def test_strict_refuses_on_the_command_line(bench, tmp_path, capsys):
    (bench / "TOY" / "samples.csv").unlink()
    base = ["--bench-root", str(bench), "--tasks", "TOY", "--encoder", "color-stats", "--no-report", "--strict"]
    assert main([*base, "--out", str(tmp_path / "o")]) == 2
    assert "--strict refuses 1 leak(s):\n  TOY, given: patients unknown for 3 of 3" in capsys.readouterr().err
    separate_patients(bench)
    assert main([*base, "--out", str(tmp_path / "o")]) == 0
