"""The table of many tasks: encoders x tasks with their mean, as the public benchmark reports itself."""

from collections.abc import Sequence
from typing import Any

SPLITS = {"given": "", "random": "Random", "loso": "LOSO"}


def task_table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: PCC of each task, and the mean over tasks for encoders that have all of them.

    Args:
        rows: see `eval.results`; PCC is mean ± std over folds.

    Returns:
        Lines by split, in it by mean PCC; a cell that ends in * is the best of its split and column.
    """
    tasks = sorted({r["task"] for r in rows})
    given = all(r["split"] == "given" for r in rows)
    header = ["Model", *([] if given else ["Split"]), *tasks, "Mean"]
    body: list[list[str]] = []
    for split in (s for s in SPLITS if any(r["split"] == s for r in rows)):
        pcc = {(r["encoder"], r["task"]): r["pcc"] for r in rows if r["split"] == split}
        encoders = {encoder for encoder, _ in pcc}
        columns = [{e: pcc[e, task]["mean"] for e in encoders if (e, task) in pcc} for task in tasks]
        whole = [e for e in encoders if all(e in column for column in columns)]
        columns.append({e: sum(column[e] for column in columns) / len(tasks) for e in whole})
        best = [max(column.values(), default=None) if len(encoders) > 1 else None for column in columns]
        for e in sorted(encoders, key=lambda e: (-columns[-1].get(e, -2.0), e)):
            texts = [f"{p['mean']:.3f}±{p['std']:.3f}" if (p := pcc.get((e, task))) else "-" for task in tasks]
            texts.append(f"{columns[-1][e]:.3f}" if e in columns[-1] else "-")
            found = zip(texts, columns, best, strict=True)
            cells = [text + "*" * (top is not None and column.get(e) == top) for text, column, top in found]
            body.append([e, *([] if given else [SPLITS[split]]), *cells])
    return header, body
