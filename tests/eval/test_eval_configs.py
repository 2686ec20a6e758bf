import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from synthetic_hest_extended import Design, write_task

from eval.hest import main
from eval.hest_options import extended_settings, fit_settings, parse

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs" / "eval").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configs_are_the_papers_settings(path):
    args = parse(["--config", str(path), "--encoder", "color-stats", "--out", "o"])
    fit, extended = fit_settings(args), extended_settings(args)
    assert (fit.head, fit.pca, fit.alpha, fit.intercept) == ("ridge", 256, None, False)
    assert args.pooling == "cls+mean"
    if path.stem == "hest_benchmark":
        assert (fit.protocol, args.tasks) == ("hest-benchmark", ["COAD", "READ"])
    else:
        assert fit.protocol == "hest-extended"
        assert (extended.split, extended.folds, extended.rule.size) == ("both", 10, 200)
        assert extended.rule.criterion == path.stem.rpartition("_")[2]


def test_there_are_three_tables():
    assert [p.stem for p in CONFIGS] == ["hest_benchmark", "hest_extended_hmhvg", "hest_extended_hvg"]


def test_the_benchmarks_table_comes_from_its_config(bench, tmp_path):
    data = ["--bench-root", str(bench), "--tasks", "TOY", "--no-report"]
    assert main(["--config", str(CONFIGS[0]), *data, "--encoder", "color-stats", "--out", str(tmp_path / "o")]) == 0
    assert (tmp_path / "o" / "results.md").read_text().splitlines()[2] == "| Model | PCC ↑ | PCC-10 ↑ | MAE ↓ | MSE ↓ |"


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A synthetic task with a few genes more than the papers' panels have."""
    root = tmp_path_factory.mktemp("extended")
    write_task(root, Design(samples=4, studies=2, spots=300, features=12, genes=230, factors=4))
    return root


@pytest.mark.parametrize("config", CONFIGS[1:], ids=lambda p: p.stem)
def test_the_tables_of_hest_extended_come_from_their_configs(config, extended, tmp_path):
    data = ["--bench-root", str(extended), "--tasks", "SYNTH", "--no-report"]
    encoders = ["--encoder", "color-stats", f"precomputed:{extended / 'SYNTH' / 'embeddings'}"]
    assert main(["--config", str(config), *data, *encoders, "--out", str(tmp_path / "o")]) == 0
    table = (tmp_path / "o" / "results.md").read_text().splitlines()[4:]
    assert [line.split("|")[2].strip() for line in table] == ["Random", "LOSO", "Drop"] * 2
    found = json.loads((tmp_path / "o" / "results.json").read_text())["results"]
    assert {(r["split"], len(r["folds"]), len(r["genes"])) for r in found} == {("random", 10, 200), ("loso", 2, 200)}


def test_the_command_line_wins():
    base = ["--config", str(CONFIGS[2]), "--encoder", "color-stats", "--out", "o"]
    args = parse([*base, "--no-pca", "--n-genes", "50", "--tasks", "OTHER"])
    assert (fit_settings(args).pca, args.n_genes, args.tasks) == (None, 50, ["OTHER"])


def test_the_command_line_replaces_and_null_says_nothing(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(
        "bench_root: b\ntasks: [T]\nout: o\nno_pca: true\nencoder: [color-stats]\ncheckpoint: [a, b]\nalpha: null\n"
    )
    args = parse(["--config", str(config)])
    assert (fit_settings(args).pca, args.encoder, args.checkpoint, args.alpha) == (
        None,
        ["color-stats"],
        ["a", "b"],
        None,
    )
    args = parse(["--config", str(config), "--pca=64", "--encoder", "timm:x", "timm:y"])
    assert (fit_settings(args).pca, args.encoder, args.checkpoint) == (64, ["timm:x", "timm:y"], ["a", "b"])
    config.write_text("bench_root: b\ntasks: [T]\nout: o\npca: 64\n")
    assert fit_settings(parse(["--config", str(config), "--no-pca"])).pca is None


def test_options_are_written_out(capsys):
    base = ["--bench-root", "b", "--tasks", "T", "--out", "o"]
    with pytest.raises(SystemExit) as stopped:
        parse([*base, "--enc", "color-stats"])
    assert stopped.value.code == 2
    assert "--enc" in capsys.readouterr().err


def test_results_follow_their_schema(bench, tmp_path):
    jsonschema = pytest.importorskip("jsonschema", reason="checks the schema")
    schema = json.loads((ROOT / "eval" / "results.schema.json").read_text())
    base = ["--bench-root", str(bench), "--tasks", "TOY", "--encoder", "color-stats", "--no-report", "--device", "cpu"]
    for i, more in enumerate(
        ([], ["--head", "ridge-tuned"], ["--head", "pls", "--components", "3"], ["--head", "knn"])
    ):
        assert main([*base, *more, "--out", str(tmp_path / str(i)), "--cache", str(tmp_path / "cache")]) == 0
        found = json.loads((tmp_path / str(i) / "results.json").read_text())
        jsonschema.validate(found, schema)
        assert found["results"][0]["pcc"]["mean"] > 0.4
    del found["results"][0]["folds"][0]["alpha"]
    with pytest.raises(jsonschema.ValidationError, match="'alpha' is a required property"):
        jsonschema.validate(found, schema)
