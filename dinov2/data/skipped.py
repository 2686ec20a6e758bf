"""What a listing leaves out by its rules, or finds damaged: counted and said in one warning, at every opening, so that
nothing is lost in silence."""

import logging
import os
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger("dinov2")
SKIPPED, DAMAGED = "skipped", "damaged"  # keys in an index's facts
NAMED = 5


class Skipped:
    """What is left out while listing, or with the key DAMAGED, what is damaged."""

    def __init__(self, key: str = SKIPPED) -> None:
        self.key = key
        self.count = 0
        self.first: list[str] = []

    def add(self, path: str, why: str) -> None:
        """Take note of one."""
        self.count += 1
        if len(self.first) < NAMED:
            self.first.append(os.fsencode(f"{path} ({why})").decode(errors="backslashreplace"))

    def facts(self) -> dict[str, Any]:
        """For the facts of an `IndexTable`."""
        return {self.key: {"count": self.count, "first": self.first}}


def warn_of_skipped(what: str, facts: Mapping[str, Any], key: str = SKIPPED) -> None:
    """Log what a listing has left out, or with the key DAMAGED what is damaged, if anything.

    Args:
        what: the data set, for the message.
        facts: with those of `Skipped`.
        key: of those facts.
    """
    found = facts.get(key)
    if found and found["count"]:
        more = f" and {found['count'] - len(found['first'])} more" if found["count"] > NAMED else ""
        logger.warning("%s: %d %s: %s%s", what, found["count"], key, ", ".join(found["first"]), more)
