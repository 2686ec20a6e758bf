"""Result files: `results.json` (everything), `results.csv` (one row an encoder and task), and the terminal's table.

Rule for a folder that already holds results: of the same settings, rows are merged (the same encoder and task is
replaced, the rest stays); of other settings, task data or encoder weights, it is an error unless forced, and then the
old results are dropped. Files are written under a temporary name and renamed, so that a reader never sees half a file.
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

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pandas", "h5py", "anndata")
HEADINGS = ("PCC", "PCC-10", "MAE", "MSE", "MAE centred", "MSE centred")
Row = dict[str, Any]


def open_results(out: Path, settings: dict[str, Any], *, force: bool = False) -> list[Row]:
    """Return the rows that `out` already holds, to be merged with new ones; none for a new folder.

    Raises:
        EvalError: the folder holds results of other settings, or a file that is no result, and `force` is off.
    """
    path = out / "results.json"
    if force:
        return []
    if not path.is_file():
        others = sorted(p.name for p in out.iterdir() if p.name != "embeddings") if out.is_dir() else []
        if others:
            raise EvalError(
                f"{out}: holds other files ({first_few(others)}) and no results.json. Use a new or empty --out, or "
                "--force to write into it."
            )
        return []
    try:
        found = json.loads(path.read_text())
        rows, old = list(found["results"]), found["meta"]["settings"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise EvalError(
            f"{path}: not a results file of this program ({error}). Use another --out, or --force."
        ) from error
    differing = sorted(k for k in old.keys() | settings.keys() if old.get(k) != settings.get(k))
    if differing:
        changes = "; ".join(f"{k} {old.get(k)!r} there, {settings.get(k)!r} now" for k in differing)
        raise EvalError(
            f"{out}: holds results of another setting ({changes}). One folder holds one setting: use another --out, or "
            "--force to replace them."
        )
    return rows


def check_mergeable(rows: list[Row], out: Path, task: str, data_hash: str) -> None:
    """Refuse to put results on other data under a task's name.

    Raises:
        EvalError: `rows` has results of `task` on data of another hash.
    """
    if any(row["task"] == task and row["data_hash"] != data_hash for row in rows):
        raise EvalError(
            f"{out}: holds results for {task} on other data (its patches, counts, genes or folds have changed since). "
            "Scores on different data cannot share a table: use another --out, or --force to replace them."
        )


def merge(rows: list[Row], new: Row) -> list[Row]:
    """Put `new` in place of the row of its encoder and task; rows of the encoder with other weights are dropped."""
    kept = [
        r
        for r in rows
        if r["encoder"] != new["encoder"] or (r["task"] != new["task"] and r["encoder_key"] == new["encoder_key"])
    ]
    return [*kept, new]


def write_results(out: Path, rows: list[Row], settings: dict[str, Any], run: dict[str, Any]) -> None:
    """Write results.json and results.csv.

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
    text = json.dumps({"meta": meta, "results": rows}, indent=1, allow_nan=False)
    write_text(out / "results.json", text + "\n")
    write_text(out / "results.csv", _csv(rows))


def versions() -> dict[str, str]:
    """Versions of Python, of this project, and of the libraries that decide a score."""
    found = {"python": platform.python_version()}
    for name in ("dinov2-pathology", *LIBRARIES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def table(rows: list[Row]) -> str:
    """The terminal's table: best PCC first within each task, mean ± std over folds, then the notes, each once."""
    ordered = sorted(rows, key=lambda r: (r["task"], -r["pcc"]["mean"]))
    lines = [["task", "encoder", "pooling", *HEADINGS]]
    lines += [
        [r["task"], r["encoder"], r["pooling"], *(f"{r[m]['mean']:.3f} ± {r[m]['std']:.3f}" for m in METRICS)]
        for r in ordered
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*text, *_note_lines(ordered)])


def _note_lines(rows: list[Row]) -> list[str]:
    encoders: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for note in row["notes"]:
            encoders.setdefault((row["task"], note), []).append(row["encoder"])
    per_task = {task: sum(r["task"] == task for r in rows) for task in {r["task"] for r in rows}}
    return [
        f"note: {task}: {note}." if len(names) == per_task[task] else f"note: {task}: {', '.join(names)}: {note}."
        for (task, note), names in encoders.items()
    ]


def _csv(rows: list[Row]) -> str:
    buffer = io.StringIO()
    columns = ["encoder", "task", "protocol", "pooling", "n_folds", "n_genes"]
    columns += [f"{m}_{part}" for m in METRICS for part in ("mean", "std")] + ["weights_hash"]
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        flat = {f"{m}_{part}": row[m][part] for m in METRICS for part in ("mean", "std")}
        writer.writerow({**row, **flat, "n_folds": len(row["folds"]), "n_genes": len(row["genes"])})
    return buffer.getvalue()
