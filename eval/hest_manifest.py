"""`python -m eval.hest manifest`: chooses samples from HEST-1k's metadata table and writes the manifest of a task.

Source of the columns: HEST-1k's metadata, version 1.1.0 (`id`, `dataset_title`, `patient`, `oncotree_code`,
`st_technology`, `species`, `nb_genes`, `spots_under_tissue`). A study is a dataset title.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dinov2.utils.files import write_text
from eval.errors import EvalError, first_few, nearest
from eval.manifest import patients_in_two_studies, read_manifest

NEEDED = ("id", "dataset_title", "patient", "oncotree_code", "st_technology")
EXAMPLES = """examples:
  python -m eval.hest manifest --metadata HEST_v1_1_0.csv --oncotree COAD READ COADREAD \\
      --technology Visium --min-genes 10000 --out samples.csv   # a panel needs genes that all samples measure
  python -m eval.hest manifest --metadata HEST_v1_1_0.csv --oncotree COAD --technology Visium "Visium HD" \\
      --min-genes 5000 --exclude TENX111 --patients-per-study --out samples.csv

HEST-1k numbers patients within a study ("Patient 1"); --patients-per-study makes the names unique.
Exit codes: 0 written, 2 something given is wrong, 130 interrupted.
"""


def select_samples(
    table: pd.DataFrame,
    *,
    oncotree: Sequence[str],
    technology: Sequence[str] = (),
    species: str | None = None,
    min_genes: int = 0,
    exclude: Sequence[str] = (),
) -> pd.DataFrame:
    """Return the chosen rows of HEST-1k's metadata, in its order.

    Args:
        table: the metadata.
        oncotree: OncoTree codes, such as COAD.
        technology: values of `st_technology`; all when empty.
        species: value of `species`; all when None.
        min_genes: least `nb_genes`; targeted panels measure a few hundred.
        exclude: ids or dataset titles to leave out.

    Raises:
        EvalError: a column that is missing, a value that does not occur, or no sample left.
    """
    needed = [*NEEDED, *(["species"] if species else []), *(["nb_genes"] if min_genes else [])]
    if absent := [c for c in needed if c not in table.columns]:
        raise EvalError(
            f"metadata: column(s) {', '.join(absent)} missing; found {first_few(table.columns, 12)}. Give HEST-1k's "
            "HEST_v1_1_0.csv or a later one."
        )
    for option, column, values in (
        ("--oncotree", "oncotree_code", oncotree),
        ("--technology", "st_technology", technology),
        ("--species", "species", [species] if species else []),
    ):
        known = set(table[column].dropna().astype(str)) if values else set()
        for value in values:
            if value not in known:
                raise EvalError(f"{option} {value}: no sample in the metadata has it. {nearest(value, known)}")
    for value in exclude:
        if value not in set(table["id"]) | set(table["dataset_title"]):
            raise EvalError(
                f"--exclude {value}: no such id or dataset title. {nearest(value, table['id'].astype(str))}"
            )
    keep = table["oncotree_code"].isin(list(oncotree))
    if technology:
        keep &= table["st_technology"].isin(list(technology))
    if species:
        keep &= table["species"] == species
    if min_genes:
        keep &= pd.to_numeric(table["nb_genes"], errors="coerce").fillna(0) >= min_genes
    keep &= ~table["id"].isin(list(exclude)) & ~table["dataset_title"].isin(list(exclude))
    if not keep.any():
        raise EvalError("no sample is left; ask for fewer conditions at once.")
    return table[keep]


def to_manifest(chosen: pd.DataFrame, *, patients_per_study: bool = False) -> pd.DataFrame:
    """Return the manifest: sample_id, patient (empty where unknown), study, oncotree, technology."""
    study = chosen["dataset_title"].fillna("").astype(str).str.strip()
    patient = chosen["patient"].fillna("").astype(str).str.strip()
    if patients_per_study:
        patient = patient.where(patient == "", study + ": " + patient)
    columns = {"sample_id": chosen["id"], "patient": patient, "study": study}
    facts = {"oncotree": chosen["oncotree_code"], "technology": chosen["st_technology"]}
    return pd.DataFrame({**columns, **facts}).reset_index(drop=True)


def main(argv: Sequence[str]) -> None:
    """`python -m eval.hest manifest ...`."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.hest manifest",
        description="Choose samples of HEST-1k and write the manifest of a task (sample_id, patient, study).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--metadata", type=Path, required=True, metavar="CSV", help="HEST-1k's metadata table")
    parser.add_argument("--oncotree", nargs="+", required=True, metavar="CODE", help="OncoTree codes: COAD READ ...")
    parser.add_argument("--technology", nargs="+", default=[], help="Visium, 'Visium HD', Xenium, ... (default: all)")
    parser.add_argument("--species", help="such as 'Homo sapiens' (default: all)")
    parser.add_argument("--min-genes", type=int, default=0, metavar="N", help="leave out targeted panels")
    parser.add_argument("--exclude", nargs="+", default=[], metavar="NAME", help="sample ids or dataset titles")
    parser.add_argument("--patients-per-study", action="store_true", help="write patients as 'study: patient'")
    parser.add_argument("--out", type=Path, required=True, metavar="CSV", help="the manifest to write")
    args = parser.parse_args(argv)
    if not args.metadata.is_file():
        raise EvalError(f"--metadata {args.metadata}: no such file. It is HEST_v1_1_0.csv of the HEST-1k download.")
    try:
        table = pd.read_csv(args.metadata, dtype=str, keep_default_na=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise EvalError(f"--metadata {args.metadata}: not a readable CSV table ({error}).") from error
    chosen = select_samples(
        table,
        oncotree=args.oncotree,
        technology=args.technology,
        species=args.species,
        min_genes=args.min_genes,
        exclude=args.exclude,
    )
    manifest = to_manifest(chosen, patients_per_study=args.patients_per_study)
    write_text(args.out, manifest.to_csv(index=False))
    print(_summary(chosen))
    for patient, studies in patients_in_two_studies(read_manifest(args.out)).items():
        print(f"warning: patient {patient!r} occurs in {len(studies)} studies; are they one? (--patients-per-study)")
    print(f"written: {args.out}")


def _summary(chosen: pd.DataFrame) -> str:
    lines = ["samples  patients  spots    technology          study"]
    for study, rows in chosen.groupby("dataset_title", sort=False):
        known = rows["patient"].fillna("").astype(str)
        patients = str(known[known != ""].nunique()) + ("+" if (known == "").any() else "")
        spots = pd.to_numeric(rows["spots_under_tissue"], errors="coerce").sum() if "spots_under_tissue" in rows else 0
        technology = ", ".join(sorted(rows["st_technology"].unique()))
        lines.append(f"{len(rows):7d}  {patients:>8}  {int(spots):<7,d}  {technology:<18}  {study}")
    lines.append(f"{len(chosen):7d}  in {chosen['dataset_title'].nunique()} studies (+: some patients are not named)")
    return "\n".join(lines)
