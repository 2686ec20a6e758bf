"""Sentences about what departed from a protocol, for the table and the results file."""

from collections.abc import Sequence
from typing import Any

from eval.errors import first_few
from eval.folds import Split
from eval.hest_data import Task
from eval.leakage import find_leaks
from eval.settings import FitSettings

FEW_SPOTS = 10


def notes(task: Task, split: Split, records: Sequence[dict[str, Any]], settings: FitSettings) -> list[str]:
    """What a reader of the scores of this split should know; `records` are those of its folds."""
    found = []
    for r in records:
        wanted = min(settings.pca or r["n_features"], r["n_features"])
        if r["pca_components"] is not None and r["pca_components"] < wanted:
            found.append(
                f"fold {r['fold']}: {r['pca_components']} PCA components instead of {wanted}, as it has only "
                f"{r['n_train']} training spots"
            )
        if r["excluded_genes"]:
            named = first_few([f"{g} ({reason})" for g, reason in r["excluded_genes"].items()])
            found.append(f"fold {r['fold']}: {r['n_excluded_genes']} gene(s) excluded from PCC and PCC-10: {named}")
        if r["n_test"] < FEW_SPOTS:
            found.append(f"fold {r['fold']}: only {r['n_test']} held-out spots; its correlations are mostly chance")
    known = [r for r in records if r.get("patient_in_training") is not None]
    inside = [r for r in known if r["patient_in_training"]]
    if inside and split.name == "given":
        out = [r["fold"] for r in known if not r["patient_in_training"]]
        which = f" (fold {first_few(out)})" if out else ""
        found.append(
            f"{len(known) - len(inside)} of {len(records)} folds hold out a patient{which}; {len(inside)} train on "
            "other sections of the held-out patient and may look better than a new patient would"
        )
    if task.panel.get("source") == "file" and task.panel.get("chosen_over") is None:
        which = f" ({task.panel['file']})" if "file" in task.panel else ""
        found.append(f"the gene panel comes from a file{which}; whether it has seen held-out samples is not known")
    found += _short_pools(task, records)
    # For given folds the sentence above has said it better.
    said = "patient in training" if split.name == "given" else None
    return found + [leak.text for leak in find_leaks(task, split) if leak.kind != said]


def _short_pools(task: Task, records: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence where a panel's pool of most variable genes is smaller than was asked for; none elsewhere."""
    panels = [("", task.panel), *((f"fold {r['fold']}", r["panel"]) for r in records if "panel" in r)]
    pools = [(where, facts) for where, facts in panels if facts.get("pool_used") is not None]
    wanted = task.panel.get("panel", {}).get("pool")
    short = [(where, facts) for where, facts in pools if facts["pool_used"] < wanted]
    if not short:
        return []
    where, facts = min(short, key=lambda found: int(found[1]["pool_used"]))
    text = (
        f"the panel's genes of highest mean are of the {facts['pool_used']} most variable ones instead of {wanted}, as "
        f"only {facts['candidates']} genes are seen often enough in every sample"
    )
    if by_study := facts.get("candidates_by_study"):
        study = min(by_study, key=by_study.__getitem__)
        text += f" (fewest within study {study!r}: {by_study[study]})"
    return [text + (f" ({where}, the shortest of {len(short)} such folds)" if where else "")]
