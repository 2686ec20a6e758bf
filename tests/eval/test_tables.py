import pytest

from eval.protocol import METRICS
from eval.tables import drops, latex, markdown, terminal


def row(encoder="a", split="given", pcc=0.5, notes=(), **changes):
    scores = {m: {"mean": pcc, "std": 0.1} for m in METRICS}
    return {
        "encoder": encoder,
        "task": "T",
        "split": split,
        "pooling": "cls",
        "notes": list(notes),
        **scores,
        **changes,
    }


def test_terminal_is_ordered_and_says_each_note_once():
    lines = terminal([row("low", pcc=0.2, notes=["n1"]), row("high", pcc=0.7, notes=["n1", "n2"])]).splitlines()
    assert lines[0].split()[:4] == ["task", "encoder", "split", "pooling"]
    assert lines[2].split()[:7] == ["T", "high", "given", "cls", "0.700", "±", "0.100"]
    assert lines[3].split()[1] == "low"
    assert lines[4:] == ["note: T: n1.", "note: T: high: n2."]


def test_drop_by_hand():
    rows = [row("a", "random", 0.4), row("a", "loso", 0.1), row("b", "random", 0.4)]
    (drop,) = drops(rows)
    assert drop["pcc"] == pytest.approx(-0.75)
    assert drops([row("a", "random", 0.0), row("a", "loso", 0.1)])[0]["pcc"] is None


def test_papers_layout_in_markdown():
    rows = [row("vit_12", s, p) for s, p in (("random", 0.4), ("loso", 0.1))]
    rows += [row("mv", s, p) for s, p in (("random", 0.6), ("loso", 0.3))]
    lines = markdown(rows).splitlines()
    assert lines[2] == "| Model | Split | PCC ↑ | PCC-10 ↑ | MAE ↓ | MSE ↓ |"
    assert [line.split("|")[1:3] for line in lines[4:]] == [
        [f" {name} ", f" {s} "] for name in ("mv", "vit_12") for s in ("Random", "LOSO", "Drop")
    ]
    assert lines[4].startswith("| mv | Random | **0.600±0.100** | **0.600±0.100** | 0.600±0.100 |")
    assert "| vit_12 | Drop | -75.0% |" in lines[9]


def test_benchmark_table_has_no_split_column():
    assert markdown([row()]).splitlines()[4] == "| a | 0.500±0.100 | 0.500±0.100 | 0.500±0.100 | 0.500±0.100 |"


def test_latex_escapes_and_marks_the_best():
    text = latex([row("a_b%", pcc=0.7), row("c", pcc=0.2)])
    assert r"a\_b\% & \textbf{0.700$\pm$0.100}" in text
    assert r"~/a^b{1}\c | d" not in (odd := latex([row(r"~/a^b{1}\c | d")]))
    assert r"\textasciitilde{}/a\textasciicircum{}b\{1\}\textbackslash{}c | d &" in odd
    assert r"| a\|b |" in markdown([row("a|b")])
    assert text.count("\\begin{tabular}{lcccc}") == text.count("\\end{tabular}") == 1
    assert r"PCC $\uparrow$" in text
