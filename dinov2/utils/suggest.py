"""Naming the nearest valid choice in an error."""

import difflib
from collections.abc import Sequence


def did_you_mean(value: str, choices: Sequence[str], listed: int = 12) -> str:
    """Return `; did you mean 'x'?` when a choice is near, and the choices themselves when they are few."""
    lowered = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(value.lower(), list(lowered), n=1, cutoff=0.5)
    text = f"; did you mean {lowered[near[0]]!r}?" if near else ""
    if len(choices) <= listed or not near:
        text += f" (known: {', '.join(choices)})"
    return text
