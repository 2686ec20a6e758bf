"""Gene panels given as files: `{"genes": [...]}`, as `var_50genes.json` of a benchmark task.

A file may also name the samples whose counts the choice has seen, `"chosen_over": [...]`.
"""

import json
from pathlib import Path

from eval.errors import EvalError, first_few

PANEL_FILE = "var_50genes.json"


def read_panel(path: Path) -> tuple[str, ...]:
    """Read the gene names of a panel file, in the file's order.

    Raises:
        EvalError: the file is missing, of another form, empty, or names a gene twice.
    """
    if not path.is_file():
        raise EvalError(f"{path}: missing. A panel is a JSON file of the form {{'genes': ['GENE1', ...]}}.")
    try:
        genes = json.loads(path.read_text())["genes"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise EvalError(f"{path}: not of the form {{'genes': ['GENE1', ...]}} ({error}).") from error
    if not isinstance(genes, list) or not genes or not all(isinstance(g, str) for g in genes):
        raise EvalError(f"{path}: 'genes' must be a list of one or more gene names.")
    if len(set(genes)) < len(genes):
        twice = sorted({g for g in genes if genes.count(g) > 1})
        raise EvalError(f"{path}: {first_few(twice)} named more than once; name each gene once.")
    return tuple(genes)


def chosen_over(path: Path) -> tuple[str, ...] | None:
    """Samples whose counts the choice of a panel file has seen, as far as the file says; None where it does not.

    Raises:
        EvalError: the file's `chosen_over` is no list of names.
    """
    names = json.loads(path.read_text()).get("chosen_over")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise EvalError(f"{path}: 'chosen_over' is {names!r}; it must be a list of sample names, or be left out.")
    return tuple(names)
