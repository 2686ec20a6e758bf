import pytest

from eval.errors import EvalError
from eval.genes import read_panel


def test_reads_the_panel_in_order(bench):
    assert read_panel(bench / "TOY" / "var_50genes.json") == ("GREEN", "RED", "MIX", "NOISE")


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
        read_panel(tmp_path / "var_50genes.json")
