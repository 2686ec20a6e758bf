"""The one exception of this package: a message that names the value found, the rule it breaks and what to do."""

import difflib
from collections.abc import Iterable

from dinov2.utils.errors import UserError


class EvalError(UserError):
    """Input that the evaluation cannot use; the command line prints its text and exits with status 2."""


def nearest(value: str, choices: Iterable[str], count: int = 3) -> str:
    """Return a hint such as ``Nearest: a, b.``, or all choices when none is close, or ``None exist.``"""
    known = sorted(set(choices))
    if not known:
        return "None exist."
    close = difflib.get_close_matches(value, known, n=count, cutoff=0.4)
    return f"Nearest: {', '.join(close)}." if close else f"There are: {first_few(known, 12)}."


def first_few(values: Iterable[object], count: int = 5) -> str:
    """Return the first `count` values joined by commas, and how many more there are."""
    items = [str(v) for v in values]
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(items[:count]) + more
