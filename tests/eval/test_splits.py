import pandas as pd
import pytest

from eval.errors import EvalError
from eval.splits import read_folds


def test_reads_folds_in_order(bench):
    folds = read_folds(bench / "TOY")
    assert [f.index for f in folds] == [0, 1, 2]
    assert [s.name for s in folds[2].train] == ["A", "B"]
    assert [s.name for s in folds[2].test] == ["C"]
    assert folds[0].test[0].patches == bench / "TOY" / "patches" / "A.h5"


def test_no_splits(bench):
    for path in (bench / "TOY" / "splits").iterdir():
        path.unlink()
    with pytest.raises(EvalError, match="no split found"):
        read_folds(bench / "TOY")


def test_half_a_fold(bench):
    (bench / "TOY" / "splits" / "test_1.csv").unlink()
    with pytest.raises(EvalError, match="fold 1 has only one"):
        read_folds(bench / "TOY")


def test_missing_files_are_named(bench):
    (bench / "TOY" / "patches" / "B.h5").unlink()
    (bench / "TOY" / "adata" / "C.h5ad").unlink()
    with pytest.raises(EvalError, match=r"2 file\(s\) that do not exist.*C\.h5ad.*B\.h5"):
        read_folds(bench / "TOY")


def damage(bench, change):
    path = bench / "TOY" / "splits" / "train_0.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="expr_path"), "expr_path missing; found sample_id, patches_path"),
        (lambda t: t.iloc[:0], "empty table"),
        (lambda t: pd.concat([t, t]), "B, C listed more than once"),
        (lambda t: t.replace({"B": "A"}), "fold 0 has A in both"),
        (lambda t: t.replace({"patches/B.h5": "patches/A.h5"}), "fold 0 has A in both"),
    ],
)
def test_damaged_tables(bench, change, message):
    damage(bench, change)
    with pytest.raises(EvalError, match=message):
        read_folds(bench / "TOY")


def test_file_without_a_table(bench):
    (bench / "TOY" / "splits" / "train_0.csv").write_text("")
    with pytest.raises(EvalError, match="not a readable CSV"):
        read_folds(bench / "TOY")
