"""Ways in which a score may know the test data: found before embedding, recorded in the results, refused on request."""

from collections.abc import Sequence
from dataclasses import dataclass

from eval.errors import EvalError, first_few
from eval.folds import Split
from eval.hest_data import Task
from eval.manifest import MANIFEST_FILE, patients_in_two_studies


@dataclass(frozen=True)
class Leak:
    """What leaks, in a word and in a sentence; `refused` says whether `--strict` refuses it."""

    kind: str
    text: str
    refused: bool = True


def find_leaks(task: Task, split: Split) -> list[Leak]:
    """Leaks of one split of a task.

    A random split has spots of every slide on both sides by design: that is said, and never refused.
    """
    leaks = []
    if task.panel.get("source") == "all":
        leaks.append(Leak("genes", "the gene panel was chosen over all samples, held-out ones included"))
    held_out = {name for fold in split.folds for name in split.samples(fold.test)}
    if seen := held_out.intersection(task.panel.get("chosen_over") or ()):
        text = f"the gene panel's file was chosen over {len(seen)} of {len(held_out)} held-out samples"
        leaks.append(Leak("genes", text))
    if split.name == "random":
        text = "spots of one slide are on both sides of a fold, so that scores say nothing of new slides"
        return [*leaks, Leak("random split", text, refused=False)]
    names = [s.name for s in task.samples]
    if unknown := [name for name in names if not task.origin(name).patient]:
        text = (
            f"patients unknown for {len(unknown)} of {len(names)} samples ({first_few(unknown)}): one may be both in "
            f"training and held out; the manifest, {MANIFEST_FILE}, can name them"
        )
        leaks.append(Leak("patients unknown", text))
    for patient, studies in patients_in_two_studies(task.origins).items():
        leaks.append(
            Leak("patient in two studies", f"patient {patient!r} occurs in two studies ({first_few(studies)})")
        )
    crossing: dict[tuple[str, str], list[str]] = {}  # (kind, who) -> folds
    for fold in split.folds:
        train, test = split.samples(fold.train), split.samples(fold.test)
        for kind, facts in _facts(task).items():
            for value in sorted({facts[n] for n in test if facts[n]} & {facts[n] for n in train if facts[n]}):
                crossing.setdefault((kind, value), []).append(fold.name)
    for (kind, value), folds in crossing.items():
        where = f"fold{'s' if len(folds) > 1 else ''} {first_few(folds)}"
        who = f"{kind} {value!r}"
        if kind == "patches":
            who = "one patches file, " + " = ".join(n for n, h in task.content.items() if h == value)
        leaks.append(Leak(f"{kind} in training", f"{who} is both in training and held out in {where}"))
    return leaks


def guard(tasks: Sequence[Task], *, strict: bool) -> list[str]:
    """Return a warning for every leak of every split; refuse those that can be avoided when `strict`.

    Raises:
        EvalError: strict, and a leak that is not part of the split's design.
    """
    found = [
        (f"{task.name}, {split.name}", leak)
        for task in tasks
        for split in task.splits
        for leak in find_leaks(task, split)
    ]
    refused = [f"{where}: {leak.text}" for where, leak in found if leak.refused]
    if strict and refused:
        listed = "\n  ".join(refused)
        raise EvalError(
            f"--strict refuses {len(refused)} leak(s):\n  {listed}\nChoose genes with --genes-from train or over "
            "other samples, name each sample's patient in the manifest (differently in different studies), or leave "
            "--strict out."
        )
    return [f"{where}: {leak.text}" for where, leak in found]


def _facts(task: Task) -> dict[str, dict[str, str]]:
    """Kind of fact -> sample -> its value, empty where unknown."""
    names = [s.name for s in task.samples]
    return {
        "patient": {n: task.origin(n).patient or "" for n in names},
        "slide": {n: task.origin(n).slide or "" for n in names},
        "patches": {n: task.content[n] for n in names},
    }
