"""Gene panels and the expression values that are predicted: log1p of raw counts, nothing else.

The public hest-bench applies log1p to the counts without normalising a spot by its total, so neither do we.
"""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.errors import EvalError, first_few

PANEL_FILE = "var_50genes.json"


def read_panel(task_root: Path) -> tuple[str, ...]:
    """Read the gene names of `var_50genes.json` (`{"genes": [...]}`), in the file's order.

    Raises:
        EvalError: the file is missing, of another form, empty, or names a gene twice.
    """
    path = task_root / PANEL_FILE
    if not path.is_file():
        raise EvalError(f"{path}: missing. A task names its genes there, as {{'genes': ['GENE1', ...]}}.")
    try:
        genes = json.loads(path.read_text())["genes"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise EvalError(f"{path}: not of the form {{'genes': ['GENE1', ...]}} ({error}).") from error
    if not isinstance(genes, list) or not genes or not all(isinstance(g, str) for g in genes):
        raise EvalError(f"{path}: 'genes' must be a list of one or more gene names.")
    if len(set(genes)) < len(genes):
        twice = sorted({g for g in genes if genes.count(g) > 1})
        raise EvalError(f"{path}: {first_few(twice)} named more than once; name each gene once.")
    return tuple(genes)


def log1p_counts(counts: NDArray[np.float64], genes: tuple[str, ...], source: Path) -> NDArray[np.float64]:
    """Return log(1 + counts), checked to be raw counts first.

    Args:
        counts: raw counts of the panel, (N, G).
        genes: the G names, for the message.
        source: the file the counts come from, for the message.

    Returns:
        log1p counts, (N, G), in natural-log units.

    Raises:
        EvalError: a value is not finite, negative, or not an integer (as when the file is normalised or logged).
    """
    rules = (
        (~np.isfinite(counts), "not finite", "repair the file"),
        (counts < 0, "negative", "store raw counts in X, not scaled or centred values"),
        (
            counts != np.round(counts),
            "not whole numbers",
            "X looks normalised or already logged: store raw counts there, log1p is applied here",
        ),
    )
    for bad, what, fix in rules:
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise EvalError(
                f"{source}: {int(bad.sum())} of {bad.size} expression values are {what}, e.g. {counts[row, column]:g} "
                f"for {genes[column]} (spot {row}); raw counts are 0, 1, 2, ... Fix: {fix}."
            )
    return np.asarray(np.log1p(counts))
