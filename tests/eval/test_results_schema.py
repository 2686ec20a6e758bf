import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from synthetic_hest_extended import Design, gene_names, write_task

from eval.hest import main

ROOT = Path(__file__).resolve().parents[2]
jsonschema = pytest.importorskip("jsonschema", reason="checks the schema")
CASES = {
    "panel over all": ["--split", "both", "--n-genes", "10"],
    "panels of folds": ["--split", "both", "--n-genes", "10", "--genes-from", "train", "--genes", "hmhvg"],
    "published solver": ["--split", "loso", "--n-genes", "10", "--solver", "lsqr"],
    "tuned": ["--split", "both", "--n-genes", "10", "--head", "ridge-tuned"],
    "panel of a file": ["--split", "random", "--genes-file", "panel.json"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("schema")
    write_task(root, Design(samples=4, studies=2, spots=240, features=8, genes=14, factors=4))
    (root / "panel.json").write_text(json.dumps({"genes": gene_names(3), "chosen_over": ["S000"]}))
    return root


@pytest.mark.parametrize("more", CASES.values(), ids=CASES)
def test_results_of_hest_extended_follow_the_schema(root, tmp_path, monkeypatch, more):
    monkeypatch.chdir(root)
    base = ["--protocol", "hest-extended", "--bench-root", ".", "--tasks", "SYNTH", "--folds", "3", "--device", "cpu"]
    base += ["--encoder", "precomputed:SYNTH/embeddings", "--no-report", "--out", str(tmp_path / "o")]
    assert main([*base, *more]) == 0
    found = json.loads((tmp_path / "o" / "results.json").read_text())
    schema = json.loads((ROOT / "eval" / "results.schema.json").read_text())
    jsonschema.validate(found, schema)
    del found["results"][0]["folds"][0]["gene_pcc"]
    with pytest.raises(jsonschema.ValidationError, match="'gene_pcc' is a required property"):
        jsonschema.validate(found, schema)
