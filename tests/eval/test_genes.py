from pathlib import Path

import numpy as np
import pytest

from eval.errors import EvalError
from eval.genes import log1p_counts, read_panel

SOURCE = Path("a.h5ad")


def test_reads_the_panel_in_order(bench):
    assert read_panel(bench / "TOY") == ("GREEN", "RED", "MIX", "NOISE")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "missing"),
        ("{", "not of the form"),
        ('["A"]', "not of the form"),
        ('{"genes": []}', "one or more"),
        ('{"genes": ["A", "B", "A"]}', "A named more than once"),
    ],
)
def test_bad_panels(tmp_path, text, message):
    if text is not None:
        (tmp_path / "var_50genes.json").write_text(text)
    with pytest.raises(EvalError, match=message):
        read_panel(tmp_path)


def test_log1p():
    counts = np.array([[0.0, 1.0], [3.0, 1e5]])
    np.testing.assert_allclose(log1p_counts(counts, ("A", "B"), SOURCE), np.log(1 + counts))


@pytest.mark.parametrize(
    ("value", "message"),
    [(-1.0, "negative.*-1 for B"), (0.6931, "already logged"), (np.nan, "not finite"), (np.inf, "not finite")],
)
def test_what_is_no_raw_count(value, message):
    with pytest.raises(EvalError, match=message):
        log1p_counts(np.array([[0.0, 1.0], [2.0, value]]), ("A", "B"), SOURCE)
