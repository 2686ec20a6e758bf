"""The manifest of a task, `samples.csv`: whose tissue each sample is, and from which study it comes.

Columns: `sample_id`, and as far as known `patient`, `study`, `slide` (the glass slide, where two samples share one).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eval.errors import EvalError, first_few

MANIFEST_FILE = "samples.csv"
FACTS = ("patient", "study", "slide")


@dataclass(frozen=True)
class Origin:
    """Where a sample comes from; None is unknown."""

    patient: str | None = None
    study: str | None = None
    slide: str | None = None


UNKNOWN = Origin()


def read_manifest(path: Path) -> dict[str, Origin]:
    """Return sample -> origin in the file's order.

    Raises:
        EvalError: no such file, not a CSV table, no column `sample_id`, an empty or repeated name, or no rows.
    """
    if not path.is_file():
        raise EvalError(
            f"{path}: no such manifest. Write a CSV table with the columns sample_id, patient, study (python -m "
            "eval.hest manifest makes one from HEST-1k's metadata)."
        )
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise EvalError(f"{path}: not a readable CSV table ({error}). Write sample_id, patient, study.") from error
    if "sample_id" not in table.columns:
        raise EvalError(f"{path}: no column sample_id; found {first_few(table.columns, 10)}. Name the samples there.")
    names = table["sample_id"].str.strip()
    if table.empty or (names == "").any():
        raise EvalError(f"{path}: no rows, or a row without sample_id; each row names one sample.")
    if names.duplicated().any():
        twice = first_few(names[names.duplicated()].unique())
        raise EvalError(f"{path}: {twice} listed more than once; list each sample once.")
    columns = [table[f].str.strip() if f in table.columns else pd.Series([""] * len(table)) for f in FACTS]
    rows = zip(names, *columns, strict=True)
    return {name: Origin(*(fact or None for fact in facts)) for name, *facts in rows}


def patients_in_two_studies(origins: Mapping[str, Origin]) -> dict[str, list[str]]:
    """Return patient -> studies for every patient that occurs in more than one."""
    studies: dict[str, set[str]] = {}
    for origin in origins.values():
        if origin.patient and origin.study:
            studies.setdefault(origin.patient, set()).add(origin.study)
    return {patient: sorted(found) for patient, found in sorted(studies.items()) if len(found) > 1}
