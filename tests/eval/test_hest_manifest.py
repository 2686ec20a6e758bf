from pathlib import Path

import pandas as pd
import pytest

from eval.errors import EvalError
from eval.hest import main
from eval.hest_manifest import select_samples, to_manifest
from eval.manifest import read_manifest

FACTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "clinical" / "hest_crc_samples.csv"


def metadata():
    return pd.DataFrame(
        {
            "id": ["A1", "A2", "B1", "C1"],
            "dataset_title": ["first", "first", "second", "third"],
            "patient": ["Patient 1", "", "Patient 1", "P9"],
            "oncotree_code": ["COAD", "READ", "COAD", "IDC"],
            "st_technology": ["Visium", "Xenium", "Visium", "Visium"],
            "species": ["Homo sapiens", "Homo sapiens", "Mus musculus", "Homo sapiens"],
            "nb_genes": ["18000", "541", "17000", "16000"],
            "spots_under_tissue": ["100", "200", "300", "400"],
        }
    )


@pytest.mark.parametrize(
    ("conditions", "chosen"),
    [
        ({"oncotree": ["COAD"]}, ["A1", "B1"]),
        ({"oncotree": ["COAD", "READ"], "technology": ["Visium"]}, ["A1", "B1"]),
        ({"oncotree": ["COAD", "READ"], "species": "Homo sapiens"}, ["A1", "A2"]),
        ({"oncotree": ["COAD", "READ"], "min_genes": 1000}, ["A1", "B1"]),
        ({"oncotree": ["COAD", "READ"], "exclude": ["first"]}, ["B1"]),
        ({"oncotree": ["COAD", "READ"], "exclude": ["A1"]}, ["A2", "B1"]),
    ],
)
def test_conditions(conditions, chosen):
    assert select_samples(metadata(), **conditions)["id"].tolist() == chosen


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"oncotree": ["COADD"]}, "--oncotree COADD.*Nearest: COAD"),
        ({"oncotree": ["COAD"], "technology": ["visium"]}, "--technology visium"),
        ({"oncotree": ["COAD"], "exclude": ["A9"]}, "--exclude A9"),
        ({"oncotree": ["IDC"], "min_genes": 20000}, "no sample is left"),
    ],
)
def test_impossible_conditions(conditions, message):
    with pytest.raises(EvalError, match=message):
        select_samples(metadata(), **conditions)


def test_patients_of_two_studies(tmp_path, capsys):
    metadata().to_csv(tmp_path / "m.csv", index=False)
    base = ["manifest", "--metadata", str(tmp_path / "m.csv"), "--oncotree", "COAD", "READ", "--out"]
    assert main([*base, str(tmp_path / "samples.csv")]) == 0
    printed = capsys.readouterr().out
    assert "in 2 studies" in printed
    assert "warning: patient 'Patient 1' occurs in 2 studies" in printed
    origins = read_manifest(tmp_path / "samples.csv")
    assert (origins["A1"].study, origins["A1"].patient, origins["A2"].patient) == ("first", "Patient 1", None)
    assert main([*base, str(tmp_path / "s2.csv"), "--patients-per-study"]) == 0
    assert "warning" not in capsys.readouterr().out
    assert read_manifest(tmp_path / "s2.csv")["B1"].patient == "second: Patient 1"


def test_another_table_is_refused(tmp_path, capsys):
    (tmp_path / "m.csv").write_text("name,title\na,b\n")
    command = ["manifest", "--metadata", str(tmp_path / "m.csv"), "--oncotree", "COAD", "--out", str(tmp_path / "o")]
    assert main(command) == 2
    assert "column(s) id, dataset_title, patient" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.shared
@pytest.mark.skipif(not FACTS.is_file(), reason="real data is not beside the checkout")
def test_the_real_colorectal_samples():
    facts = pd.read_csv(FACTS, dtype=str, keep_default_na=False)
    table = facts.rename(columns={"sample_id": "id", "study": "dataset_title"})
    chosen = to_manifest(select_samples(table, oncotree=["COAD", "READ", "COADREAD"]))
    assert len(chosen) == 64
    assert chosen["study"].nunique() == 11
    assert (chosen["study"] == "COLON MAP: Colon Molecular Atlas Project").sum() == 34
