"""`bad_tiles.jsonl` of a run folder: every tile that could not be decoded, named once over all restarts."""

import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from dinov2.utils.files import write_text

logger = logging.getLogger("dinov2")
BAD_TILES_FILE = "bad_tiles.jsonl"


class BadTileLog:
    """Appends a line with `iteration`, `path` and `reason` for each tile that the file does not name yet.

    As with the metrics, a full disk costs lines, never the run.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / BAD_TILES_FILE
        self._known = _paths(self._path)

    def add(self, step: int, bad: Iterable[tuple[str, str]]) -> None:
        """Take note of (path, reason) of the failures of a step."""
        new = {path: reason for path, reason in bad if path not in self._known}
        if not new:
            return
        self._known.update(new)
        rows = [json.dumps({"iteration": step, "path": path, "reason": reason}) for path, reason in new.items()]
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write("".join(f"{row}\n" for row in rows))
        except OSError as error:
            logger.error("%s cannot be written: %s; training goes on without it", self._path, error)


def _paths(path: Path) -> set[str]:
    """The paths that a file names, which loses a line that was cut by a kill."""
    if not path.is_file():
        return set()
    rows = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            rows[json.loads(line)["path"]] = line
    if len(rows) < len(lines):
        with suppress(OSError):
            write_text(path, "".join(f"{line}\n" for line in rows.values()))
    return set(rows)
