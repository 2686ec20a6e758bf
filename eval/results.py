"""Result files: `results.json` (everything), `results.csv` (a row an encoder, task and split), `genes.csv` (a
row a gene of those), and the paper's tables as `results.md` and `results.tex`.

`results.schema.json` beside this module describes `results.json`. Rule for a folder that already holds results: of the
same settings, rows are merged (the same encoder, task and split is replaced, the rest stays); of other settings or task
data, it is an error unless forced, and then the old results are dropped. Rows of an encoder whose weights or settings
have changed since are dropped with a warning that names them. Files are written under a temporary name and renamed, so
that a reader never sees half a file, and under a lock, so that runs into one folder at the same time keep their rows.
"""

import csv
import fcntl
import io
import json
import logging
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from dinov2.utils.files import write_text
from eval.errors import EvalError, first_few
from eval.protocol import METRICS
from eval.tables import Row, drops, latex, markdown

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pandas", "h5py", "anndata")
SCHEMA_VERSION = 3
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
        names = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
        # Hidden files are the lock, and what a first write that was killed has left.
        others = [name for name in names if name not in OURS and not name.startswith(".")]
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


def check_mergeable(rows: Sequence[Row], out: Path, task: str, split: str, data_hash: str, content_hash: str) -> None:
    """Refuse to put results on other data under a task's name.

    Raises:
        EvalError: `rows` has results of the task's split on data of another hash, or of any of its splits on samples of
            another hash (the drop between splits would compare them).
    """
    same = [row for row in rows if row["task"] == task]
    changed = any(row["content_hash"] != content_hash for row in same)
    if changed or any(row["split"] == split and row["data_hash"] != data_hash for row in same):
        raise EvalError(
            f"{out}: holds results for {task} on other data (its samples, patches, counts, genes or folds have changed "
            "since). Scores on different data cannot share a table: use another --out, or --force to replace them."
        )


def merge(rows: Sequence[Row], *new: Row) -> list[Row]:
    """Put each of `new` in place of the row of its encoder, task and split.

    Rows of an encoder of that name with another key (retrained, another transform, other files) are dropped, and a
    warning names those that none of `new` replaces.
    """
    places = {(row["encoder"], row["task"], row["split"]) for row in new}
    keys = {row["encoder"]: row["encoder_key"] for row in new}
    others = [row for row in rows if (row["encoder"], row["task"], row["split"]) not in places]
    kept = [row for row in others if keys.get(row["encoder"], row["encoder_key"]) == row["encoder_key"]]
    dropped = [f"{row['encoder']} on {row['task']} ({row['split']})" for row in others if row not in kept]
    if dropped:
        logger.warning(
            "weights or settings of the encoder have changed since; its old rows are dropped: %s. Evaluate it there "
            "again.",
            ", ".join(dropped),
        )
    return [*kept, *new]


def add_results(
    out: Path, new: Sequence[Row], settings: dict[str, Any], run: dict[str, Any], *, force: bool = False
) -> list[Row]:
    """Merge new rows into those that `out` holds by now, write all files, and return all rows.

    The folder is read again under a lock: another run may have added rows since this one began.

    Args:
        out: results folder, made if absent.
        new: rows of one task.
        settings: what all rows share.
        run: facts of this run, see `write_results`.
        force: drop what the folder holds.

    Raises:
        EvalError: another run has put in results of other settings or data.
    """
    with _locked(out):
        rows = open_results(out, settings, force=force)
        for row in new:
            check_mergeable(rows, out, row["task"], row["split"], row["data_hash"], row["content_hash"])
        rows = merge(rows, *new)
        write_results(out, rows, settings, run)
    return rows


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process too."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            logger.warning("%s: no locks on this file system (%s); let only one run write there", out, error)
        yield


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
