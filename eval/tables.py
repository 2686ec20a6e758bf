"""Tables of results: for the terminal, and in the paper's layout as Markdown and LaTeX.

Rows are the encoders, best PCC first. Where an encoder has a random and a leave-one-study-out row, a third one gives
the Drop, (LOSO - random) / random, of each metric's mean over folds. Several tasks have a table together, too.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from eval.protocol import METRICS
from eval.task_table import SPLITS, task_table

Row = dict[str, Any]
HEADINGS = {
    "pcc": "PCC",
    "pcc10": "PCC-10",
    "mae": "MAE",
    "mse": "MSE",
    "mae_centred": "MAE centred",
    "mse_centred": "MSE centred",
}
HIGHER_IS_BETTER = ("pcc", "pcc10")
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        "↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$", **{char: f"\\{char}" for char in "&%#_{}$"},
    }
)  # fmt: skip
PAPER_METRICS = ("pcc", "pcc10", "mae", "mse")


def drops(rows: Sequence[Row]) -> list[Row]:
    """(LOSO - random) / random of each metric, for every encoder and task that has both; null where random is 0."""
    random = {(r["encoder"], r["task"]): r for r in rows if r["split"] == "random"}
    found = []
    for row in rows:
        other = random.get((row["encoder"], row["task"]))
        if row["split"] != "loso" or other is None:
            continue
        change = {}
        for m in METRICS:
            before, after = other[m]["mean"], row[m]["mean"]
            change[m] = (after - before) / before if before else None
        found.append({"encoder": row["encoder"], "task": row["task"], **change})
    return found


def ordered(rows: Sequence[Row]) -> list[Row]:
    """By task; within it encoders by their best PCC, and each encoder's random row before its LOSO row."""
    best: dict[tuple[str, str], float] = {}
    for r in rows:
        key = (r["task"], r["encoder"])
        best[key] = max(best.get(key, -2.0), r["pcc"]["mean"])
    order = list(SPLITS)
    return sorted(
        rows, key=lambda r: (r["task"], -best[r["task"], r["encoder"]], r["encoder"], order.index(r["split"]))
    )


def terminal(rows: Sequence[Row]) -> str:
    """The terminal's table: mean ± std over folds, drops, then the notes, each once."""
    lines = [["task", "encoder", "split", "pooling", *HEADINGS.values()]]
    lines += [
        [
            r["task"],
            r["encoder"],
            r["split"],
            r["pooling"],
            *(f"{r[m]['mean']:.3f} ± {r[m]['std']:.3f}" for m in METRICS),
        ]
        for r in ordered(rows)
    ]
    lines += [[d["task"], d["encoder"], "drop", "", *(_percent(d[m]) for m in METRICS)] for d in drops(rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*text, *_note_lines(ordered(rows))])


def markdown(rows: Sequence[Row]) -> str:
    """All tasks together where there are several, then one table a task; the best mean of each split in bold."""
    parts = []
    for table in _tables(rows):
        lines = [f"| {' | '.join(table.header)} |", "|" + "---|" * len(table.header)]
        cells = [[markdown_cell(f"**{c[:-1]}**" if c.endswith("*") else c) for c in line] for line in table.body]
        lines += [f"| {' | '.join(line)} |" for line in cells]
        parts.append(f"## {table.title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def markdown_cell(text: str) -> str:
    """A text for a cell of a Markdown table: bars would end the cell."""
    return text.replace("|", r"\|")


def latex(rows: Sequence[Row]) -> str:
    """The same tables as `markdown`, each a `table` for a paper (package booktabs)."""
    parts = []
    for table in _tables(rows):
        lines = [" & ".join(map(_latex_cell, line)) + r" \\" for line in table.body]
        parts.append(
            "\\begin{table}\n\\centering\n"
            f"\\caption{{{_latex_cell(table.title)}: mean $\\pm$ standard deviation over folds.}}\n"
            f"\\begin{{tabular}}{{{'l' * table.left}{'c' * (len(table.header) - table.left)}}}\n\\toprule\n"
            + " & ".join(map(_latex_cell, table.header)) + " \\\\\n\\midrule\n" + "\n".join(lines)
            + "\n\\bottomrule\n\\end{tabular}\n\\end{table}\n"
        )  # fmt: skip
    return "\n".join(parts)


class _Table(NamedTuple):
    """`left` columns are names; a cell that ends in * is the best of its split and column."""

    title: str
    left: int
    header: list[str]
    body: list[list[str]]


def _tables(rows: Sequence[Row]) -> list[_Table]:
    by_task = {task: [r for r in rows if r["task"] == task] for task in sorted({r["task"] for r in rows})}
    together = [("PCC of all tasks", rows, task_table)] if len(by_task) > 1 else []
    wanted = [*together, *((task, own, _paper_table) for task, own in by_task.items())]
    return [_Table(title, 1 if _given(own) else 2, *make(own)) for title, own, make in wanted]


def _given(rows: Sequence[Row]) -> bool:
    """Whether there are only given folds, so that a column of splits would say nothing."""
    return all(r["split"] == "given" for r in rows)


def _paper_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of one task; a cell that ends in * is the best of its split and metric."""
    given = _given(rows)
    header = ["Model", *([] if given else ["Split"])]
    header += [f"{HEADINGS[m]} {'↑' if m in HIGHER_IS_BETTER else '↓'}" for m in PAPER_METRICS]
    best: dict[tuple[str, str], float] = {}
    for r in rows:
        for m in PAPER_METRICS:
            pick = max if m in HIGHER_IS_BETTER else min
            best[r["split"], m] = pick(best.get((r["split"], m), r[m]["mean"]), r[m]["mean"])
    dropped = {d["encoder"]: d for d in drops(rows)}
    several = len({r["encoder"] for r in rows}) > 1
    body = []
    for r in ordered(rows):
        cells = [
            f"{r[m]['mean']:.3f}±{r[m]['std']:.3f}" + "*" * (several and r[m]["mean"] == best[r["split"], m])
            for m in PAPER_METRICS
        ]
        body.append([r["encoder"], *([] if given else [SPLITS[r["split"]]]), *cells])
        if r["split"] == "loso" and r["encoder"] in dropped:
            body.append([r["encoder"], "Drop", *(_percent(dropped[r["encoder"]][m]) for m in PAPER_METRICS)])
    return header, body


def _latex_cell(text: str) -> str:
    escaped = text.removesuffix("*").translate(_LATEX)
    return rf"\textbf{{{escaped}}}" if text.endswith("*") else escaped


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.1f}%"


def _note_lines(rows: Sequence[Row]) -> list[str]:
    encoders: dict[tuple[str, str], list[str]] = {}
    per_place: dict[str, int] = {}
    for row in rows:
        place = row["task"] if row["split"] == "given" else f"{row['task']} {row['split']}"
        per_place[place] = per_place.get(place, 0) + 1
        for note in row["notes"]:
            encoders.setdefault((place, note), []).append(row["encoder"])
    return [
        f"note: {place}: {note}." if len(names) == per_place[place] else f"note: {place}: {', '.join(names)}: {note}."
        for (place, note), names in encoders.items()
    ]
