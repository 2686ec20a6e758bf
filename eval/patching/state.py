"""What is known about each slide of a job, one small JSON file a slide, so that a rerun does only what is missing.

OUT/state/<job>/<slide>.json holds the outcome, and a key: the sha256 of the settings and of the slide's content.
Another key means that slide or settings have changed. A file is replaced as a whole; a job that dies leaves `running`.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dinov2.slides.companions import companions
from dinov2.utils.files import write_text

logger = logging.getLogger(__name__)

Status = Literal["running", "done", "empty", "failed"]
_ENDS = 2**20  # bytes hashed at either end of a slide


@dataclass(frozen=True)
class SlideState:
    """Outcome for one slide.

    Attributes:
        name: the slide's name, without suffix.
        slide: its path.
        key: of the settings and the slide's content.
        status: `empty` is a slide without tissue or patches, which is no error.
        reason: why it failed or is empty.
        attempts: how often it was begun with this key.
        seconds: of the last attempt.
        patches: how many came out.
        details: whatever the job adds (resolution, level, ...).
        settings: key of the settings alone, by which another job's outcome is told without reading the slide.
        parameters: the settings themselves, for people and for the reports of later calls.
    """

    name: str
    slide: str
    key: str
    status: Status
    reason: str = ""
    attempts: int = 1
    seconds: float = 0.0
    patches: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)
    settings: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        """Whether a rerun with the same key has nothing to do, if the files are there."""
        return self.status in ("done", "empty")


def state_path(out: Path, job: str, name: str) -> Path:
    """Return the file of a slide's state."""
    return out / "state" / job / f"{name}.json"


def read_state(path: Path) -> SlideState | None:
    """Return the state in a file; None where there is none, or where it is damaged, which is logged."""
    try:
        return SlideState(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        logger.warning("%s: unreadable state (%s): the slide is done again", path, error)
        return None


def read_states(out: Path, job: str) -> list[SlideState]:
    """Return the states of all slides of a job, sorted by name."""
    found = (read_state(path) for path in sorted((out / "state" / job).glob("*.json")))
    return [state for state in found if state is not None]


def lock_path(out: Path, job: str, name: str) -> Path:
    """Return the file that is locked by the process which works on a slide."""
    return out / "state" / job / f".{name}.lock"


def write_state(path: Path, state: SlideState) -> None:
    """Replace a slide's state."""
    write_text(path, json.dumps(dataclasses.asdict(state), indent=1) + "\n")


def job_key(settings: Mapping[str, Any], *contents: str) -> str:
    """Return the sha256 of settings and of what else the outcome depends on."""
    return hashlib.sha256(json.dumps([settings, contents], sort_keys=True, default=str).encode()).hexdigest()


def fingerprint(path: Path) -> str:
    """Return the sha256 of a file's size and of its first and last MiB: two quick reads, however large the slide.

    Of a slide in several files also that of the others' names, sizes and times.
    """
    digest = _digest(path)
    others = [(other.name, other.stat().st_size, other.stat().st_mtime_ns) for other in companions(path)]
    return digest if not others else hashlib.sha256(json.dumps([digest, others]).encode()).hexdigest()


def _digest(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        digest.update(file.read(_ENDS))
        file.seek(max(0, size - _ENDS))
        digest.update(file.read(_ENDS))
    return digest.hexdigest()
