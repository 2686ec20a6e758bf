import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from eval.encoders import ColorStats
from eval.errors import EvalError
from eval.hest import main
from eval.hest_run import Work, find_device, run

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"


def arguments(bench, out, *more):
    return ["--bench-root", str(bench), "--tasks", "TOY", "--out", str(out), "--device", "cpu", *more]


def test_whole_program(bench, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["run", *arguments(bench, out, "--encoder", "color-stats", "timm:resnet10t,pretrained=false")]) == 0
    printed = capsys.readouterr().out
    assert "1 of 3 folds hold out a patient (fold 2)" in printed
    content = json.loads((out / "results.json").read_text())
    assert [r["encoder"] for r in content["results"]] == ["color-stats", "timm:resnet10t,pretrained=false"]
    color = content["results"][0]
    assert color["pcc"]["mean"] > 0.5
    assert {"task", "protocol", "pcc10", "mae", "mse", "mae_centred", "mse_centred", "folds", "genes"} <= color.keys()
    settings = content["meta"]["settings"]
    assert (settings["pca"], settings["pooling"], settings["intercept"]) == (256, "cls+mean", False)
    assert content["results"][1]["pooling"] == "mean"
    assert content["meta"]["command"].startswith("python -m eval.hest --bench-root")
    assert len((out / "results.csv").read_text().splitlines()) == 3


def test_our_backbone_end_to_end(bench, tmp_path, capsys):
    more = ("--encoder", "random:vit12_tiny", "--pooling", "cls")
    assert main(arguments(bench, tmp_path / "out", *more)) == 0
    assert "random:vit12_tiny" in capsys.readouterr().out


def test_second_run_reuses_embeddings_and_merges(bench, tmp_path):
    first = run(["color-stats"], bench, ["TOY"], tmp_path / "out", work=Work(progress=False))
    again = run(["color-stats"], bench, ["TOY"], tmp_path / "out", work=Work(progress=False))
    assert [r["patches_embedded"] for r in first + again] == [72, 0]
    assert again[0]["folds"] == first[0]["folds"]


def test_other_settings_in_the_folder(bench, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(arguments(bench, out, "--encoder", "color-stats")) == 0
    assert main(arguments(bench, out, "--encoder", "color-stats", "--pca", "5")) == 2
    assert "pca 256 there, 5 now" in capsys.readouterr().err
    assert main(arguments(bench, out, "--encoder", "color-stats", "--pca", "5", "--force")) == 0
    assert main(arguments(bench, out, "--encoder", "color-stats", "--no-pca", "--force")) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "no encoder given"),
        (["--encoder", "color-stat"], "Nearest: color-stats"),
        (["--encoder", "color-stats", "--tasks", "TOI"], "Nearest: TOY"),
        (["--encoder", "color-stats", "--alpha", "-1"], "must be above 0"),
        (["--encoder", "color-stats", "--split", "loso"], "--split loso: it belongs to --protocol hest-extended"),
        (
            ["--encoder", "color-stats", "--map-genes", "GREN"],
            "--map-genes GREN: not in the panel of TOY. Nearest: GREEN",
        ),
        (["--encoder", "color-stats", "--components", "3"], "the head 'ridge' has no use for it"),
        (["--encoder", "color-stats", "--batch-size", "0"], "must be 1 or more"),
        (["--encoder", "color-stats", "eval.encoders:ColorStats"], "encoder name 'color-stats': two of"),
    ],
)
def test_bad_input_is_one_line_and_status_2(bench, tmp_path, capsys, more, message):
    assert main(arguments(bench, tmp_path / "out", *more)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "message"), [("cuda:9", r"sees 2 CUDA device\(s\)"), ("cudaX", "must be auto"), ("gpu", "must be auto")]
)
def test_devices_that_are_not_there(monkeypatch, name, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [find_device(d) for d in ("cuda", "cuda:1", "cpu")] == ["cuda", "cuda:1", "cpu"]
    with pytest.raises(EvalError, match=message):
        find_device(name)


def test_an_unknown_command(capsys):
    assert main(["manifst", "--out", "x"]) == 2
    assert "unknown command 'manifst'. Nearest: manifest" in capsys.readouterr().err


def test_an_interruption_is_one_sentence(bench, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ColorStats, "embed", interrupted)
    assert main(arguments(bench, tmp_path / "out", "--encoder", "color-stats")) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("interrupted: what is written stays")
    monkeypatch.undo()
    assert main(arguments(bench, tmp_path / "out", "--encoder", "color-stats", "--no-report")) == 0


def test_a_missing_checkpoint(bench, tmp_path, capsys):
    assert main(arguments(bench, tmp_path / "out", "--checkpoint", str(tmp_path / "absent.safetensors"))) == 2
    assert "absent.safetensors" in capsys.readouterr().err


def test_help_has_examples():
    done = subprocess.run(
        [sys.executable, "-m", "eval.hest", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "python -m eval.hest --checkpoint" in done.stdout


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "make_hest_bench.py").is_file(), reason="real data is not beside the checkout")
@pytest.mark.skipif(importlib.util.find_spec("scanpy") is None, reason="make_hest_bench.py needs scanpy")
def test_color_stats_on_real_tissue(tmp_path):
    subprocess.run([sys.executable, SHARED / "make_hest_bench.py", tmp_path], check=True, capture_output=True)
    (row,) = run(["color-stats"], tmp_path, ["HER2ST"], tmp_path / "out", work=Work(progress=False))
    assert row["pcc"]["mean"] == pytest.approx(0.566, abs=0.005)
    assert [f["patient_in_training"] for f in row["folds"]] == [False, True, True, True, True, True]
