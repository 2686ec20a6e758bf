"""What a job did, for people (Markdown) and programs (JSON)."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from dinov2.utils.files import write_text
from eval.patching.locks import BusyError, alone
from eval.patching.state import SlideState, Status

logger = logging.getLogger(__name__)

_PATIENCE = 60.0  # seconds; other processes write reports, too
# In the table, what needs attention comes first.
ORDER: tuple[Status, ...] = ("failed", "running", "empty", "done")
STATUSES: tuple[Status, ...] = get_args(Status)


def write_reports_alone(out: Path, job: str, write: Callable[[], None]) -> None:
    """Call `write`, which reads states and writes reports, while no other process does.

    Where that cannot be a warning says why: what the slides have come to must still be told.
    """
    try:
        with alone(out / "state" / f".{job}.lock", f"the reports in {out}", _PATIENCE):
            write()
    except (OSError, BusyError) as error:
        logger.warning("%s: the reports are not up to date: %s", out, error)


def write_summary(
    out: Path, job: str, states: Sequence[SlideState], settings: Mapping[str, Any], missing: Sequence[str] = ()
) -> None:
    """Write OUT/<job>_summary.json and OUT/<job>_summary.md.

    Args:
        out: the output folder.
        job: `patches` or `embed`.
        states: of all slides, those of other shards included.
        settings: what the job was asked to do.
        missing: names of slides that have not been begun.
    """
    totals: dict[str, Any] = {
        "slides": len(states) + len(missing),
        **dict.fromkeys(STATUSES, 0),
        **Counter[str](state.status for state in states),
        "not_begun": len(missing),
        "patches": sum(state.patches for state in states),
        "seconds": round(sum(state.seconds for state in states), 2),
    }
    slides = [
        {"name": s.name, "status": s.status, "reason": s.reason, "patches": s.patches, "seconds": s.seconds}
        | {"attempts": s.attempts, "slide": s.slide, **s.details}
        for s in states
    ]
    content = {"job": job, "totals": totals, "settings": dict(settings), "slides": slides, "not_begun": list(missing)}
    write_text(out / f"{job}_summary.json", json.dumps(content, indent=1, default=str) + "\n")
    write_text(out / f"{job}_summary.md", _markdown(job, totals, settings, states))


def exit_code(states: Sequence[SlideState]) -> int:
    """Return 1 where a slide failed, else 3 where one is empty, else 0."""
    statuses = {state.status for state in states}
    return 1 if statuses & {"failed", "running"} else 3 if "empty" in statuses else 0


def _markdown(job: str, totals: Mapping[str, Any], settings: Mapping[str, Any], states: Sequence[SlideState]) -> str:
    lines = [
        f"# {job}",
        "",
        f"{time.strftime('%Y-%m-%d %H:%M')}. {totals['slides']} slides: {totals['done']} done, "
        f"{totals['empty']} without tissue, {totals['failed']} failed, "
        f"{totals['running'] + totals['not_begun']} not finished. "
        f"{totals['patches']:,} patches, {totals['seconds']:,} s of work.",
        "",
        *(f"- {name}: {value}" for name, value in settings.items()),
        "",
        "| slide | status | patches | seconds | attempts | reason |",
        "|---|---|---|---|---|---|",
    ]
    order = sorted(states, key=lambda s: (ORDER.index(s.status), s.name))
    for s in order:
        parts = (s.reason, f"other settings: {s.details['other_settings']}" if "other_settings" in s.details else "")
        reason = "; ".join(filter(None, parts)).replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {s.name} | {s.status} | {s.patches} | {s.seconds:.2f} | {s.attempts} | {reason} |")
    return "\n".join(lines) + "\n"
