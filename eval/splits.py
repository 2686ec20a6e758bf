"""Folds of a task in the public hest-bench layout: `splits/train_i.csv` and `splits/test_i.csv`.

Each table has the columns `sample_id`, `patches_path` and `expr_path`; the paths are relative to the task folder.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eval.errors import EvalError, first_few

COLUMNS = ("sample_id", "patches_path", "expr_path")


@dataclass(frozen=True)
class Sample:
    """One section: its name, its patches (HDF5) and its expression (h5ad), as absolute or task-relative paths."""

    name: str
    patches: Path
    expression: Path


@dataclass(frozen=True)
class Fold:
    """One split of the samples; `index` is the i of `train_i.csv`."""

    index: int
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]


def read_folds(task_root: Path) -> tuple[Fold, ...]:
    """Read and check all folds of the task, ordered by index.

    Raises:
        EvalError: no splits, a train table without its test table, missing columns or files, an empty table, or a
            sample on both sides of a fold.
    """
    folder = task_root / "splits"
    indices: dict[str, set[int]] = {"train": set(), "test": set()}
    for path in folder.glob("*.csv"):
        if match := re.fullmatch(r"(train|test)_(\d+)\.csv", path.name):
            indices[match[1]].add(int(match[2]))
    if not indices["train"] and not indices["test"]:
        raise EvalError(
            f"{folder}: no split found. A task needs splits/train_0.csv and splits/test_0.csv (then _1, ...), with the "
            f"columns {', '.join(COLUMNS)}."
        )
    if alone := indices["train"] ^ indices["test"]:
        raise EvalError(
            f"{folder}: fold {first_few(sorted(alone))} has only one of train_i.csv and test_i.csv; each fold needs "
            "both. Add the missing table or remove the other one."
        )
    folds = tuple(_read_fold(task_root, i) for i in sorted(indices["train"]))
    missing = sorted({str(p) for fold in folds for s in fold.train + fold.test for p in _missing_files(s)})
    if missing:
        raise EvalError(
            f"{folder}: the splits name {len(missing)} file(s) that do not exist: {first_few(missing)}. Complete the "
            "download of the task or correct patches_path and expr_path (relative to the task folder)."
        )
    return folds


def _read_fold(task_root: Path, index: int) -> Fold:
    folder = task_root / "splits"
    train = _read_table(folder / f"train_{index}.csv", task_root)
    test = _read_table(folder / f"test_{index}.csv", task_root)
    train_files = {s.patches.resolve() for s in train}
    shared = {s.name for s in train} & {s.name for s in test}
    shared |= {s.name for s in test if s.patches.resolve() in train_files}
    if shared:
        raise EvalError(
            f"{folder}: fold {index} has {first_few(sorted(shared))} in both train_{index}.csv and test_{index}.csv; a "
            "sample may be on one side only, or the score measures memory. Remove it from one of the tables."
        )
    return Fold(index, train, test)


def _read_table(path: Path, task_root: Path) -> tuple[Sample, ...]:
    try:
        table = pd.read_csv(path, dtype=str)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise EvalError(f"{path}: not a readable CSV table ({error}). Write it with {', '.join(COLUMNS)}.") from error
    if absent := [c for c in COLUMNS if c not in table.columns]:
        raise EvalError(f"{path}: column(s) {', '.join(absent)} missing; found {first_few(table.columns, 10)}.")
    if table.empty or table[list(COLUMNS)].isna().any(axis=None):
        raise EvalError(f"{path}: empty table or empty cell; each row needs {', '.join(COLUMNS)}.")
    names = table["sample_id"]
    if names.duplicated().any():
        raise EvalError(
            f"{path}: {first_few(names[names.duplicated()].unique())} listed more than once; list each sample once."
        )
    return _samples(table, task_root)


def _samples(table: pd.DataFrame, root: Path) -> tuple[Sample, ...]:
    rows: Sequence[tuple[str, str, str]] = list(table[list(COLUMNS)].itertuples(index=False, name=None))
    return tuple(Sample(name, root / patches, root / expression) for name, patches, expression in rows)


def _missing_files(sample: Sample) -> list[Path]:
    return [p for p in (sample.patches, sample.expression) if not p.is_file()]
