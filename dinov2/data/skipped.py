"""What a listing leaves out by its rules: counted and said in one warning, at every opening, so that nothing is lost
in silence."""

import logging
import os
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger("dinov2")
FACT = "skipped"  # key in an index's facts
NAMED = 5


class Skipped:
    """What is left out while listing."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, path: str, why: str) -> None:
        """Take note of one."""
        self.count += 1
        if len(self.first) < NAMED:
            self.first.append(f"{os.fsencode(path).decode(errors='backslashreplace')} ({why})")

    def facts(self) -> dict[str, Any]:
        """For the facts of an `IndexTable`."""
        return {FACT: {"count": self.count, "first": self.first}}


def warn_of_skipped(what: str, facts: Mapping[str, Any]) -> None:
    """Log what a listing has left out, if anything.

    Args:
        what: the data set, for the message.
        facts: with those of `Skipped`.
    """
    skipped = facts.get(FACT)
    if skipped and skipped["count"]:
        more = f" and {skipped['count'] - len(skipped['first'])} more" if skipped["count"] > NAMED else ""
        logger.warning("%s: %d skipped: %s%s", what, skipped["count"], ", ".join(skipped["first"]), more)
