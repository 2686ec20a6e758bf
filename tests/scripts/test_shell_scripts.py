"""Shell and Slurm scripts: syntax, help, and the exit codes of options that cannot be used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    [*ROOT.glob("scripts/*.sh"), *ROOT.glob("scripts/lib/*.sh"), *ROOT.glob("slurm/*.sbatch"), ROOT / ".ci" / "run"]
)


def bash(*arguments: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment})


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/usr/bin/env bash\n" + text)
    path.chmod(0o755)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script: Path) -> None:
    done = bash("-n", script)
    assert done.returncode == 0, done.stderr


def test_quickstart_help() -> None:
    done = bash("scripts/quickstart.sh", "--help")
    assert done.returncode == 0
    for word in ("--bench", "--tiles", "--tasks", "--steps", "--out", "--python", "SIMULATED", "examples"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stesp", "3"], "unknown option --stesp"),
        (["--steps"], "--steps needs a value"),
        (["--steps", "--out", "x"], "--steps needs a value"),
        (["--steps", "many"], "whole number"),
        (["--steps", "0"], "whole number"),
        (["--tasks", "IDC"], "--tasks needs --bench"),
        (["--bench", "."], "go together"),
        (["--tiles", "no-such-folder", "--bench", "."], "no such folder"),
        (["--tiles", "configs", "--bench", "configs"], "no folder in it has splits"),
    ],
)
def test_quickstart_refuses(options: list[str], message: str, tmp_path: Path) -> None:
    done = bash("scripts/quickstart.sh", *options, VENV=str(tmp_path / "venv"))
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "venv").exists()


def test_an_old_python_is_named(tmp_path: Path) -> None:
    old = tmp_path / "python-old"
    write_program(old, '[[ $1 == --version ]] && echo "Python 3.9.2"\n[[ $1 == --version ]]\n')
    done = bash("scripts/quickstart.sh", "--python", old, VENV=str(tmp_path / "venv"))
    assert done.returncode == 2
    assert "Python 3.9.2; Python 3.11 to 3.13 is needed" in done.stderr


def test_a_python_without_venv_is_named(tmp_path: Path) -> None:
    bare = tmp_path / "python-bare"
    write_program(bare, '[[ $2 != *ensurepip* ]] || exit 1\nexec "$REAL" "$@"\n')
    done = bash("scripts/quickstart.sh", "--python", bare, VENV=str(tmp_path / "venv"), REAL=sys.executable)
    assert done.returncode == 2
    assert "no venv module" in done.stderr


@pytest.mark.parametrize(
    ("outcomes", "code", "line"),
    [
        ((0,), 0, None),
        ((1, 0), 0, "PASSED ONLY THE SECOND TIME: tests/a.py::test_b tests/a.py::test_c"),
        ((1, 1), 1, None),
    ],
)
def test_what_passed_only_the_second_time_is_said(
    outcomes: tuple[int, ...], code: int, line: str | None, tmp_path: Path
) -> None:
    """A stand-in for pytest writes down its arguments, and fails with two tests as often as it should."""
    words = " ".join(map(str, outcomes))
    write_program(
        tmp_path / "python",
        f'echo "$@" >>{tmp_path}/calls\ncodes=({words})\ncode=${{codes[$(wc -l <{tmp_path}/calls) - 1]}}\n'
        "if ((code)); then printf '%s\\n' 'FAILED tests/a.py::test_c - x' 'ERROR tests/a.py::test_b'; fi\n"
        "exit $code\n",
    )
    script = f"set -euo pipefail; source scripts/lib/pytest_twice.sh; pytest_twice {tmp_path}/python tests/a.py"
    done = bash("-c", script)
    assert done.returncode == code
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["-m pytest -rfE tests/a.py", "-m pytest tests/a.py --last-failed"][: len(outcomes)]
    assert (done.stdout.splitlines()[-1:] == [line]) == (line is not None)


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """A submit folder where srun runs its command in place, scontrol writes down its arguments, python the same."""
    write_program(tmp_path / "bin" / "srun", 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    write_program(tmp_path / "bin" / "scontrol", 'echo "$@" >>scontrol.log\n')
    write_program(tmp_path / ".venv" / "bin" / "python", 'printf "%s\\n" "$@" >arguments\nexit "${PYTHON_EXIT:-0}"\n')
    (tmp_path / "recipe.yaml").write_text("")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return {"PATH": path, "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "CONFIG": "recipe.yaml"}


@pytest.mark.parametrize(
    ("code", "restarts", "queued"), [(0, 0, False), (2, 0, False), (143, 0, False), (143, 50, False)]
)
def test_pretrain_job(code: int, restarts: int, queued: bool, cluster: dict[str, str], tmp_path: Path) -> None:
    done = bash(
        ROOT / "slurm" / "pretrain.sbatch",
        "optim.epochs=3",
        "train.dataset_path=Folder:root=my tiles",
        **cluster,
        PYTHON_EXIT=str(code),
        SLURM_RESTART_COUNT=str(restarts),
    )
    assert done.returncode == code
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[:2] == ["-m", "dinov2.train"]
    assert arguments[2:6] == ["--config-file", "recipe.yaml", "--output-dir", "runs/recipe"]
    assert arguments[6:] == ["optim.epochs=3", "train.dataset_path=Folder:root=my tiles"]
    assert (tmp_path / "scontrol.log").exists() == queued


def test_eval_job(cluster: dict[str, str], tmp_path: Path) -> None:
    variables = {"CHECKPOINT": "runs/a", "BENCH_ROOT": "bench", "TASKS": "IDC PRAD"}
    done = bash(ROOT / "slurm" / "eval_hest.sbatch", "--batch-size", "8", **cluster, **variables)
    assert done.returncode == 0, done.stderr
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[arguments.index("--tasks") + 1 :] == ["IDC", "PRAD", "--out", "results/a", "--batch-size", "8"]
    preset = {"CHECKPOINT": "runs/a runs/b", "EVAL_CONFIG": "configs/eval/hest_extended_hvg.yaml"}
    done = bash(ROOT / "slurm" / "eval_hest.sbatch", **cluster, **preset)
    assert done.returncode == 0, done.stderr
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[arguments.index("--checkpoint") :] == [
        "--checkpoint", "runs/a", "runs/b", "--encoder", "random:runs/a", "color-stats",
        "--config", "configs/eval/hest_extended_hvg.yaml", "--out", "results/a",
    ]  # fmt: skip
    done = bash(ROOT / "slurm" / "eval_hest.sbatch", **cluster)
    assert done.returncode != 0
    assert "CHECKPOINT" in done.stderr
