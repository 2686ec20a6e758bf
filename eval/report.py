"""The report of a results folder: `python -m eval.hest report RESULTS` writes RESULTS/report.html.

With `--out` several folders become one, with joint tables and report (`eval.joined`).

One file without scripts or links: leaderboard with intervals over patients or slides, PCC of every gene, PCC against a
gene's mean and variance, the drop from a random split to leaving a study out, and slides with measured and predicted
expression of a few genes. `run` writes it too.
"""

import argparse
import html
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinov2.utils.files import write_text
from eval.errors import EvalError
from eval.joined import join_results
from eval.maps import read_map
from eval.report_figures import SPLIT_NAMES, against_expression, drop_plot, slide_maps, strips
from eval.results import read_results
from eval.statistics import interval, unit_scores
from eval.tables import HEADINGS, HIGHER_IS_BETTER, Row, drops, markdown, ordered
from eval.task_table import task_table
from eval.tissue import read_tissue, tissue_name

EXAMPLES = """examples:
  python -m eval.hest report results/hvg results/hmhvg                      # report.html of each
  python -m eval.hest report results/hvg/runs_* --out results/hvg/joint     # one table and report of many encoders

With --out the folders must agree on the data of a task and on all settings but the encoder's; DIR then holds what a run
writes, of all encoders: results.json, .csv, .md, .tex, genes.csv, maps and report.html.
Exit codes: 0 done, 2 something given is wrong, 130 interrupted.
"""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1240px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.3rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1.05rem; margin-bottom: .3rem; } p.about { color: #555; margin-top: 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13.5px; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; } td.best { font-weight: 700; }
tr.drop td { color: #777; }
td.name { white-space: normal; overflow-wrap: anywhere; max-width: 15em; }
img { max-width: 100%; height: auto; } code { font-size: 12.5px; overflow-wrap: anywhere; }
li { margin: .2rem 0; } summary { cursor: pointer; margin: .6rem 0; }
"""


def write_report(out: Path) -> Path:
    """Write `report.html` of a results folder and return its path.

    Raises:
        EvalError: no results there.
    """
    found = read_results(out)
    rows = ordered(found["results"])
    if not rows:
        raise EvalError(f"{out}: its results file has no rows. Evaluate an encoder into it first.")
    tasks = sorted({row["task"] for row in rows})
    together = [_all_tasks(rows)] if len(tasks) > 1 else []
    body = [_head(found["meta"]), *together, *(_task(out, [r for r in rows if r["task"] == task]) for task in tasks)]
    page = (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>HEST evaluation: {_text(', '.join(tasks))}</title><style>{STYLE}</style></head>\n"
        f"<body>{''.join(body)}</body></html>\n"
    )
    write_text(out / "report.html", page)
    return out / "report.html"


def main(argv: Sequence[str]) -> None:
    """`python -m eval.hest report RESULTS... [--out DIR]`."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.hest report",
        description="Write report.html of results folders anew, or join several in one folder with tables and report.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="results folders")
    parser.add_argument("--out", type=Path, metavar="DIR", help="join all in this folder")
    args = parser.parse_args(argv)
    if args.out is None:
        for folder in args.results:
            print(f"written: {write_report(folder)}")
        return
    rows = join_results(args.results, args.out, shlex.join(["python", "-m", "eval.hest", "report", *argv]))
    print(markdown(rows))
    print(f"written: {args.out} (results.json, .csv, .md, .tex, genes.csv, {write_report(args.out).name})")


def _head(meta: dict[str, Any]) -> str:
    settings = {**meta["settings"], "device": meta.get("device"), "seconds of the last run": meta.get("seconds")}
    facts = "".join(
        f"<tr><th>{_text(k)}</th><td>{_text(v if isinstance(v, str) else json.dumps(v))}</td></tr>"
        for k, v in settings.items()
    )
    versions = ", ".join(f"{k} {v}" for k, v in meta["versions"].items())
    command = f"<p><code>{_text(meta['command'])}</code></p>" if meta.get("command") else ""
    return (
        f"<h1>Gene expression from histology: HEST evaluation</h1>{command}"
        f"<details><summary>Settings and versions</summary><table>{facts}</table>"
        f"<p class='about'>{_text(versions)}</p></details>"
    )


def _all_tasks(rows: Sequence[Row]) -> str:
    header, body = task_table(rows)
    lines = ["".join(f"<th>{_text(name)}</th>" for name in header)]
    for line in body:
        marked = ((" class='best'", cell[:-1]) if cell.endswith("*") else ("", cell) for cell in line)
        lines.append("".join(f"<td{kind}>{_text(cell)}</td>" for kind, cell in marked))
    table = "".join(f"<tr>{line}</tr>" for line in lines)
    about = "PCC, mean ± standard deviation over folds, and its mean over tasks where an encoder has all; best in bold."
    return f"<h2>All tasks</h2><p class='about'>{about}</p><div class='wide'><table>{table}</table></div>"


def _task(out: Path, rows: Sequence[Row]) -> str:
    parts = [f"<h2>{_text(rows[0]['task'])}</h2>", _leaderboard(rows), _notes(rows)]
    both = {d["encoder"] for d in drops(rows)}
    if both:
        about = "Mean PCC of each encoder in both splits, and its relative change."
        parts.append(_picture("From the random split to unseen studies", about, drop_plot(rows)))
    about = "One point a gene. Genes that are constant in a fold are left out there."
    parts.append(_picture("PCC of every gene", about, strips(rows)))
    # Of the splits, the one that says more about new slides.
    chosen = [
        r for r in rows if r["split"] == ("loso" if any(r["split"] == "loso" for r in rows) else rows[0]["split"])
    ]
    about = "Low and hardly varying genes are mostly counting noise, which no encoder predicts."
    parts.append(_picture("PCC against a gene's expression", about, against_expression(chosen)))
    parts.append(_maps(out, chosen[0]))
    parts.append(_gene_table(rows))
    return "".join(parts)


def _leaderboard(rows: Sequence[Row]) -> str:
    best = {}
    for split in {r["split"] for r in rows}:
        for m in HEADINGS:
            pick = max if m in HIGHER_IS_BETTER else min
            best[split, m] = pick(r[m]["mean"] for r in rows if r["split"] == split)
    dropped = {d["encoder"]: d for d in drops(rows)}
    head = "".join(f"<th class='number'>{name}</th>" for name in ("PCC a patient or slide (95%)", *HEADINGS.values()))
    lines = [f"<tr><th>encoder</th><th>split</th>{head}</tr>"]
    for row in rows:
        cells = "".join(
            f"<td class='number{' best' if row[m]['mean'] == best[row['split'], m] else ''}'>"
            f"{row[m]['mean']:.3f} ± {row[m]['std']:.3f}</td>"
            for m in HEADINGS
        )
        start = f"<td class='name'>{_text(row['encoder'])}</td><td>{SPLIT_NAMES[row['split']]}</td>"
        lines.append(f"<tr>{start}<td class='number'>{_units(row)}</td>{cells}</tr>")
        if row["split"] == "loso" and row["encoder"] in dropped:
            changes = [dropped[row["encoder"]][m] for m in HEADINGS]
            cells = "".join(f"<td class='number'>{'-' if c is None else f'{100 * c:+.1f}%'}</td>" for c in changes)
            lines.append(f"<tr class='drop'><td></td><td>drop</td><td></td>{cells}</tr>")
    about = (
        f"{rows[0]['panel']['size']} genes; mean ± standard deviation over folds, best in bold. The third column is "
        "the mean over patients (slides where patients are unknown) with a bootstrap interval; paired tests: "
        "<code>python -m eval.compare</code>."
    )
    return f"<h3>Leaderboard</h3><p class='about'>{about}</p><div class='wide'><table>{''.join(lines)}</table></div>"


def _units(row: Row) -> str:
    if all(s["pcc"] is None for s in row["samples"]):
        return "-"
    values = list(unit_scores(row["samples"]).values())
    found = interval(values)
    if found.low is None:
        return f"{found.mean:.3f} (1)"
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f}), n = {len(values)}"


def _notes(rows: Sequence[Row]) -> str:
    said: dict[str, list[str]] = {}
    for row in rows:
        for note in row["notes"]:
            where = "" if row["split"] == "given" else f"{SPLIT_NAMES[row['split']]}: "
            said.setdefault(where + note, []).append(row["encoder"])
    if not said:
        return ""
    return "<h3>Notes</h3><ul>" + "".join(f"<li>{_text(note)}</li>" for note in said) + "</ul>"


def _maps(out: Path, row: Row) -> str:
    path = out / "maps" / (row.get("map") or "")
    if not path.is_file():
        return ""
    genes, samples = read_map(path)
    tissue = read_tissue(out / "maps" / tissue_name(row["task"], row["content_hash"]))
    chosen = {name: samples[name] for name in tissue if name in samples}
    if not chosen:
        return ""
    about = (
        f"{_text(row['encoder'])}, {SPLIT_NAMES[row['split']]}: a section's patches at their places, and log1p counts "
        "there; measured and predicted share a colour scale. Others: --map-samples, --map-genes."
    )
    return _picture("Measured and predicted expression", about, slide_maps(genes, chosen, tissue))


def _gene_table(rows: Sequence[Row]) -> str:
    head = "".join(f"<th class='number'>{_text(r['encoder'])}<br>{SPLIT_NAMES[r['split']]}</th>" for r in rows)
    lines = [f"<tr><th>gene</th><th class='number'>mean</th><th class='number'>variance</th>{head}</tr>"]
    by_gene = [{g["gene"]: g for g in row["genes"]} for row in rows]
    order = sorted(rows[0]["genes"], key=lambda g: -(g["pcc"]["mean"] if g["pcc"] else -2.0))
    for gene in order:
        found = [genes.get(gene["gene"], {}).get("pcc") for genes in by_gene]
        shown = ["-" if p is None else f"{p['mean']:.3f}" for p in found]
        cells = "".join(f"<td class='number'>{text}</td>" for text in shown)
        facts = f"<td class='number'>{gene['mean']:.3f}</td><td class='number'>{gene['variance']:.3f}</td>"
        lines.append(f"<tr><td>{_text(gene['gene'])}</td>{facts}{cells}</tr>")
    table = f"<div class='wide'><table>{''.join(lines)}</table></div>"
    return f"<details><summary>All {len(order)} genes</summary>{table}</details>"


def _picture(title: str, about: str, uri: str) -> str:
    return f"<h3>{title}</h3><p class='about'>{about}</p><img alt='{title}' src='{uri}'>"


def _text(value: object) -> str:
    return html.escape(str(value))
