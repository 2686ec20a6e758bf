"""File names from a pattern: braces as in WebDataset's strings, then the shell's wildcards."""

import glob
import os
import re

from dinov2.data.errors import DatasetError

_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
MAX_NAMES = 1_000_000


def expand_braces(pattern: str) -> list[str]:
    """Names that a pattern stands for: `{000..099}` counts with leading zeros, `{a,b}` lists; braces may be repeated.

    Raises:
        DatasetError: a range that counts down, or more than a million names.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    first, last, listed = match.groups()
    if listed is not None:
        choices = listed.split(",")
    else:
        if not 0 <= int(last) - int(first) < MAX_NAMES:
            raise DatasetError(f"{pattern!r}: {{{first}..{last}}} must count up, over at most {MAX_NAMES:,} numbers")
        width = len(first) if first.startswith("0") else 0
        choices = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    tails = expand_braces(pattern[match.end() :])
    if len(choices) * len(tails) > MAX_NAMES:
        raise DatasetError(f"{pattern!r} stands for more than {MAX_NAMES:,} names")
    return [pattern[: match.start()] + choice + tail for choice in choices for tail in tails]


def matching_files(kind: str, pattern: str) -> list[str]:
    """Absolute names of the files that a pattern of braces and wildcards stands for, each real file once, in order.

    Raises:
        DatasetError: a name without wildcards that is no file, or a wildcard that matches none.
    """
    found: dict[str, str] = {}  # real path -> name
    missing = []
    for name in expand_braces(os.path.abspath(os.path.expanduser(pattern))):
        matches = sorted(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))
        if os.path.isfile(name):
            matches = [name]  # a name may hold a wildcard's characters
        if not matches:
            missing.append(name)
        for path in matches:
            found.setdefault(os.path.realpath(path), path)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DatasetError(f"{kind}: {pattern}: no such file: {', '.join(missing[:3])}{more}")
    return list(found.values())
