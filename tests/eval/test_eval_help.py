import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import synthetic_hest_extended

from eval import compare, hest
from eval.embedding import cli as embedding
from eval.patching import cli as patching

COMMANDS = {
    "hest": (hest.main, []),
    **{f"hest {name}": (hest.main, [name]) for name in ("run", *hest.COMMANDS)},
    "compare": (compare.main, []),
    "embed": (embedding.main, []),
    "patches": (patching.main, []),
    "synthetic": (synthetic_hest_extended.main, []),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_and_exit_codes(name, capsys):
    main, arguments = COMMANDS[name]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "examples:\n" in printed
    assert "Exit codes: 0 " in printed
    assert all(len(line) <= 120 for line in printed.splitlines())
