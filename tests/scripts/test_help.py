"""`--help` of every command of the pretraining package and every benchmark program: examples and exit codes."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in (ROOT / "dinov2").rglob("*.py")
    if path.name == "__main__.py" or 'if __name__ == "__main__":' in path.read_text()
)
PROGRAMS = sorted(
    path.name
    for path in (ROOT / "scripts" / "bench").glob("*.py")
    if re.search(r"^    sys\.exit\((run\(program\)|main\(\))\)$", path.read_text(), re.MULTILINE)
)


def help_of(capsys, monkeypatch, run) -> str:
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_the_commands_of_the_readme_are_among_them():
    named = set(re.findall(r"python -m (dinov2[.\w]*\w)", (ROOT / "README.md").read_text()))
    assert "dinov2.train" in named
    assert named <= set(MODULES)
    assert set(re.findall(r"scripts/bench/(\w+\.py)", (ROOT / "README.md").read_text())) <= set(PROGRAMS)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("module", MODULES)
def test_a_command_shows_examples_and_exit_codes(capsys, monkeypatch, module):
    text = help_of(capsys, monkeypatch, lambda: runpy.run_module(module, run_name="__main__"))
    assert f"python -m {module} " in text.split("xample", 1)[1]
    assert "Exit codes: 0 " in text


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_benchmark_shows_examples_and_exit_codes(bench, capsys, monkeypatch, program):
    path = ROOT / "scripts" / "bench" / program
    text = help_of(capsys, monkeypatch, lambda: runpy.run_path(str(path), run_name="__main__"))
    assert f"python scripts/bench/{program}" in text.split("xample", 1)[1]
    assert "Exit codes: 0 " in text
