"""Compare encoders of one or more results folders: `python -m eval.compare RESULTS...`.

For every task and split: each encoder's mean over patients (or slides) with a bootstrap interval, and for each pair of
encoders the paired difference, its interval and a p-value, corrected by Holm over all tests of the call.
"""

import argparse
import itertools
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dinov2.utils.errors import UserError
from dinov2.utils.files import write_text
from eval.errors import EvalError, first_few, nearest
from eval.results import read_results
from eval.statistics import Interval, Metric, Unit, common_unit, holm, interval, paired_p, paired_scores
from eval.tables import Row, markdown_cell

EXAMPLES = """examples:
  python -m eval.compare results/hvg
  python -m eval.compare results/mvhybrid results/vit12 results/vit24 --reference checkpoint:runs/vit12 \\
      --out results/compare

An encoder that occurs in several folders is called FOLDER/ENCODER, with as many parents as tell them apart. With few
patients no p-value can be small: with n of them the smallest is 2 / 2^n.
Exit codes: 0 done, 2 something given is wrong.
"""


def load_rows(paths: Sequence[Path]) -> list[Row]:
    """Rows of all files, encoders that occur in several told apart by `label`.

    Raises:
        EvalError: a file cannot be read or is given twice, two have results of one task and split on different data, or
            an encoder's label occurs twice for one task and split.
    """
    rows: list[Row] = []
    for path, folder in zip(paths, _folder_names(paths), strict=True):
        found = read_results(path)
        rows += [{**row, "folder": folder, "settings": found["meta"]["settings"]} for row in found["results"]]
    hashes: dict[tuple[str, str], str] = {}
    for row in rows:
        place = (row["task"], row["split"])
        if hashes.setdefault(place, row["data_hash"]) != row["data_hash"]:
            raise EvalError(
                f"{row['task']} ({row['split']}): the results are on different data (patches, counts, genes or folds "
                "differ), so that encoders cannot be compared. Evaluate all of them on the same."
            )
    places = Counter((row["task"], row["split"], row["encoder"]) for row in rows)
    repeated = {encoder for (_, _, encoder), times in places.items() if times > 1}
    for row in rows:
        row["label"] = f"{row['folder']}/{row['encoder']}" if row["encoder"] in repeated else row["encoder"]
    labels = Counter((row["task"], row["split"], row["label"]) for row in rows)
    if twice := [key for key, times in labels.items() if times > 1]:
        raise EvalError(
            f"{twice[0][0]} ({twice[0][1]}): two results would both be called {twice[0][2]!r}. Rename one of the "
            "folders, or leave one of them out."
        )
    return rows


def _folder_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell all of them apart."""
    places = [path.resolve() for path in paths]
    places = [place.parent if place.name == "results.json" else place for place in places]
    if twice := [path for path, place in zip(paths, places, strict=True) if places.count(place) > 1]:
        raise EvalError(f"{', '.join(map(str, twice))}: one results folder given more than once. Give it once.")
    depth = 1
    while len({place.parts[-depth:] for place in places}) < len(places):
        depth += 1
    return [str(Path(*place.parts[-depth:])) for place in places]


def compare(
    rows: Sequence[Row], *, metric: Metric = "pcc", unit: Unit = "auto", reference: str | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the scores (task, split, unit, encoder, units, mean, low, high) and the paired tests.

    Args:
        rows: as `load_rows` returns them.
        metric: `pcc` (higher is better) or `mse`.
        unit: what is resampled and paired.
        reference: compare all with this encoder only; every pair by default.

    Raises:
        EvalError: an unknown reference, patients that are not known, or encoders scored on different units.
    """
    labels = {row["label"] for row in rows}
    if reference is not None and reference not in labels:
        raise EvalError(f"--reference {reference!r}: no such encoder in the results. {nearest(reference, labels)}")
    scores, tests = [], []
    for place in sorted({(row["task"], row["split"]) for row in rows}):
        here = {row["label"]: row["samples"] for row in rows if (row["task"], row["split"]) == place}
        common = common_unit(list(here.values()), metric, unit)
        values = paired_scores(here, metric, common)
        where = {"task": place[0], "split": place[1], "unit": common}
        for label, found in values.items():
            scores.append({**where, "encoder": label, "units": len(found), **asdict(interval(list(found.values())))})
        for a, b in itertools.combinations(values, 2):
            if reference is not None:
                if reference not in (a, b):
                    continue
                a, b = (a, b) if b == reference else (b, a)
            differences = np.array([score - values[b][u] for u, score in values[a].items()])
            record = {**where, "a": a, "b": b, "units": len(differences), **asdict(interval(differences))}
            tests.append({**record, "p": paired_p(differences)})
    for test, adjusted in zip(tests, holm([t["p"] for t in tests]), strict=True):
        test["p_holm"] = adjusted
    better = -1 if metric == "mse" else 1
    scores.sort(key=lambda s: (s["task"], s["split"], -better * s["mean"]))
    return scores, tests


def differing_settings(rows: Sequence[Row]) -> list[str]:
    """One sentence for each setting in which results of one task and split differ; `rows` are those of `load_rows`."""
    keys = sorted({key for row in rows for key in row["settings"]})
    found: dict[str, list[str]] = {}  # what differs -> where
    for place in sorted({(row["task"], row["split"]) for row in rows}):
        here = [row for row in rows if (row["task"], row["split"]) == place]
        for key in keys:
            folders: dict[str, list[str]] = {}  # value -> folders of results with it
            for row in here:
                folders.setdefault(json.dumps(row["settings"].get(key), sort_keys=True), []).append(row["folder"])
            if len(folders) > 1:
                values = ", ".join(f"{v} in {first_few(dict.fromkeys(names))}" for v, names in folders.items())
                found.setdefault(f"{key} is {values}", []).append(f"{place[0]} ({place[1]})")
    return [f"settings differ too, not only encoders: {what}; on {first_few(on)}" for what, on in found.items()]


def report(
    scores: Sequence[dict[str, Any]], tests: Sequence[dict[str, Any]], metric: Metric, notes: Sequence[str] = ()
) -> str:
    """Both tables and the notes as Markdown."""
    lines = [f"| task | split | encoder | units | {metric} (95% interval) |", "|---|---|---|---|---|"]
    lines += [
        f"| {s['task']} | {s['split']} | {markdown_cell(s['encoder'])} | {s['units']} | {_interval(s)} |"
        for s in scores
    ]
    if tests:
        lines += ["", "| task | split | A | B | units | A - B (95% interval) | p | p (Holm) |", "|---" * 8 + "|"]
        lines += [
            f"| {t['task']} | {t['split']} | {markdown_cell(t['a'])} | {markdown_cell(t['b'])} | {t['units']} | "
            f"{_interval(t)} | {t['p']:.4f} | {t['p_holm']:.4f} |"
            for t in tests
        ]
        few = min(t["units"] for t in tests)
        if few < 6:
            lines += ["", f"note: with {few} unit(s) the smallest possible p is {min(1.0, 2 / 2**few):.3g}."]
    for note in notes:
        lines += ["", f"note: {note}."]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 on success, 2 with a line on stderr for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.compare",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="RESULTS", help="results folders, or results.json files"
    )
    parser.add_argument("--metric", choices=("pcc", "mse"), default="pcc", help="per patient or slide; default: pcc")
    parser.add_argument(
        "--unit", choices=("auto", "patient", "sample"), default="auto", help="auto (default): patients where known"
    )
    parser.add_argument("--reference", metavar="ENCODER", help="compare all others with this one (default: all pairs)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write compare.json, compare.csv, compare.md there")
    args = parser.parse_args(argv)
    try:
        rows = load_rows(args.results)
        scores, tests = compare(rows, metric=args.metric, unit=args.unit, reference=args.reference)
        notes = differing_settings(rows)
        text = report(scores, tests, args.metric, notes)
        if args.out is not None:
            content = {"metric": args.metric, "unit": args.unit, "notes": notes, "scores": scores, "tests": tests}
            write_text(args.out / "compare.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
            write_text(args.out / "compare.csv", pd.DataFrame(tests or scores).to_csv(index=False))
            write_text(args.out / "compare.md", text + "\n")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


def _interval(record: dict[str, Any]) -> str:
    found = Interval(record["mean"], record["low"], record["high"])
    if found.low is None:
        return f"{found.mean:.4f}"
    return f"{found.mean:.4f} ({found.low:.4f} to {found.high:.4f})"


if __name__ == "__main__":
    sys.exit(main())
