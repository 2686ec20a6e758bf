"""Result files: `results.json` (everything), `results.csv` (a row an encoder, task and split), `genes.csv` (a
row a gene of those), and the paper's tables as `results.md` and `results.tex`.

`results.schema.json` beside this module describes `results.json`. Rule for a folder that already holds results: of the
same settings, rows are merged (the same encoder, task and split is replaced, the rest stays); of other settings, task
data or encoder weights, it is an error unless forced, and then the old results are dropped. Files are written under a
temporary name and renamed, so that a reader never sees half a file.
"""

import csv
import io
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from dinov2.utils.files import write_text
from eval.errors import EvalError, first_few
from eval.protocol import METRICS
from eval.tables import Row, drops, latex, markdown

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pandas", "h5py", "anndata")
SCHEMA_VERSION = 2
OURS = ("embeddings", "maps")  # what an interrupted run leaves before its first results


def open_results(out: Path, settings: dict[str, Any], *, force: bool = False) -> list[Row]:
    """Return the rows that `out` already holds, to be merged with new ones; none for a new folder.

    Raises:
        EvalError: the folder holds results of other settings, or a file that is no result, and `force` is off.
    """
    path = out / "results.json"
    if force:
        return []
    if not path.is_file():
        others = sorted(p.name for p in out.iterdir() if p.name not in OURS) if out.is_dir() else []
        if others:
            raise EvalError(
                f"{out}: holds other files ({first_few(others)}) and no results.json. Use a new or empty --out, or "
                "--force to write into it."
            )
        return []
    found = read_results(path)
    rows, old = list(found["results"]), found["meta"]["settings"]
    differing = sorted(k for k in old.keys() | settings.keys() if old.get(k) != settings.get(k))
    if differing:
        changes = "; ".join(f"{k} {old.get(k)!r} there, {settings.get(k)!r} now" for k in differing)
        raise EvalError(
            f"{out}: holds results of another setting ({changes}). One folder holds one setting: use another --out, or "
            "--force to replace them."
        )
    return rows


def read_results(path: Path) -> dict[str, Any]:
    """Read a results file, or the one in a folder: `meta`, `results`, `drops`.

    Raises:
        EvalError: no such file, or not a results file of this version.
    """
    path = path / "results.json" if path.is_dir() else path
    if not path.is_file():
        raise EvalError(f"{path}: no such results file. Give a results folder, or its results.json.")
    try:
        found = json.loads(path.read_text())
        version, _, _ = found.get("schema", 1), found["results"], found["meta"]["settings"]
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise EvalError(
            f"{path}: not a results file of this program ({error}). Use another --out, or --force."
        ) from error
    if version != SCHEMA_VERSION:
        raise EvalError(
            f"{path}: results of version {version}; this program writes version {SCHEMA_VERSION}. Evaluate again into "
            "a new --out (embeddings can be kept with --cache), or --force."
        )
    return dict(found)


def check_mergeable(rows: list[Row], out: Path, task: str, split: str, data_hash: str) -> None:
    """Refuse to put results on other data under a task's name.

    Raises:
        EvalError: `rows` has results of the task's split on data of another hash.
    """
    if any((row["task"], row["split"]) == (task, split) and row["data_hash"] != data_hash for row in rows):
        raise EvalError(
            f"{out}: holds results for {task} on other data (its patches, counts, genes or folds have changed since). "
            "Scores on different data cannot share a table: use another --out, or --force to replace them."
        )


def merge(rows: list[Row], new: Row) -> list[Row]:
    """Put `new` in place of the row of its encoder, task and split; rows of the encoder with other weights are dropped.

    Embeddings made elsewhere have a hash for each task, so that only rows of the same task can tell of other weights.
    """

    def replaced(old: Row) -> bool:
        if old["encoder"] != new["encoder"]:
            return False
        other_weights = old["encoder_key"] != new["encoder_key"]
        if old["task"] != new["task"]:
            return other_weights and not new["encoder"].startswith("precomputed:")
        return old["split"] == new["split"] or other_weights

    return [*(r for r in rows if not replaced(r)), new]


def write_results(out: Path, rows: list[Row], settings: dict[str, Any], run: dict[str, Any]) -> None:
    """Write results.json, results.csv, genes.csv, results.md and results.tex.

    Args:
        out: folder, made if absent.
        rows: see `eval.protocol.evaluate`, plus encoder, task, protocol, weights_hash and the like.
        settings: what all rows share.
        run: facts of the latest run (command, seconds).
    """
    out.mkdir(parents=True, exist_ok=True)
    meta = {
        "settings": settings,
        "encoders": {r["encoder"]: r["encoder_settings"] for r in rows},
        "versions": versions(),
        **run,
    }
    content = {"schema": SCHEMA_VERSION, "meta": meta, "results": rows, "drops": drops(rows)}
    write_text(out / "results.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_text(out / "results.csv", _csv(rows))
    write_text(out / "genes.csv", _gene_csv(rows))
    write_text(out / "results.md", markdown(rows))
    write_text(out / "results.tex", latex(rows))


def versions() -> dict[str, str]:
    """Versions of Python, of this project, and of the libraries that decide a score."""
    found = {"python": platform.python_version()}
    for name in ("dinov2-pathology", *LIBRARIES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _csv(rows: list[Row]) -> str:
    buffer = io.StringIO()
    columns = ["encoder", "task", "protocol", "split", "pooling", "n_folds", "n_genes"]
    columns += [f"{m}_{part}" for m in METRICS for part in ("mean", "std")] + ["weights_hash"]
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        flat = {f"{m}_{part}": row[m][part] for m in METRICS for part in ("mean", "std")}
        writer.writerow({**row, **flat, "n_folds": len(row["folds"]), "n_genes": len(row["genes"])})
    return buffer.getvalue()


def _gene_csv(rows: list[Row]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["encoder", "task", "split", "gene", "mean", "variance", "pcc_mean", "pcc_std", "n_folds"])
    for row in rows:
        for gene in row["genes"]:
            pcc = gene["pcc"] or {"mean": "", "std": ""}
            facts = [gene[k] for k in ("gene", "mean", "variance")]
            writer.writerow([row["encoder"], row["task"], row["split"], *facts, *pcc.values(), gene["n_folds"]])
    return buffer.getvalue()
