"""`scripts/slurm_test_cluster.sh` where there is no cluster."""

import os
import subprocess

import pytest
from slurm_jobs import ROOT


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["status"], 3, "not running; start it with: bash scripts/slurm_test_cluster.sh up"),
        (["down"], 0, ""),
        ([], 2, "up|down|status"),
        (["start"], 2, "up|down|status"),
        (["--help"], 0, "SLURM_CONF"),
    ],
)
def test_exit_codes(arguments, code, message, tmp_path):
    script = ["bash", str(ROOT / "scripts" / "slurm_test_cluster.sh"), *arguments]
    environ = os.environ | {"SLURM_TEST_DIR": str(tmp_path / "none")}
    done = subprocess.run(script, capture_output=True, text=True, env=environ)
    assert done.returncode == code
    assert message in done.stdout + done.stderr
    assert not (tmp_path / "none").exists()


def test_only_an_option_of_the_checks_starts_it():
    """`.ci/run` gives it; a user's machine gets no daemons by surprise."""
    help_text = subprocess.run(["bash", str(ROOT / "scripts" / "test.sh"), "--help"], capture_output=True, text=True)
    assert help_text.returncode == 0
    assert "--with-slurm" in help_text.stdout
    assert "--with-slurm" in (ROOT / ".ci" / "run").read_text()
