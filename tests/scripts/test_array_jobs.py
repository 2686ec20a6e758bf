"""The job arrays of slides: what each task runs, and arrays that would leave slides out."""

import os
import subprocess
from pathlib import Path

import pytest

SLURM = Path(__file__).resolve().parents[2] / "slurm"


def submit(script: str, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(folder), **variables}
    command = ["bash", str(SLURM / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A submit folder where srun runs its command in place and python writes down its arguments."""
    for path, text in (
        (tmp_path / "bin" / "srun", 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n'),
        (tmp_path / ".venv" / "bin" / "python", 'printf "%s\\n" "$@" >arguments\n'),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/usr/bin/env bash\n" + text)
        path.chmod(0o755)
    return tmp_path


TASK = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_CPUS_PER_TASK": "8"}
PATCHES = {"SLIDES": "a b.svs", "OUT": "out"}
EMBED = {**PATCHES, "COORDS": "coords", "CHECKPOINT": "runs/a"}


def test_patches(folder: Path) -> None:
    done = submit("patches.sbatch", folder, "--preset", "tcga", **PATCHES, **TASK)
    assert done.returncode == 0, done.stderr
    expected = "-m eval.patches --slides a b.svs --out out --workers 8 --shard 2/4 --preset tcga"
    assert (folder / "arguments").read_text().split() == expected.split()


def test_embed(folder: Path) -> None:
    done = submit("embed.sbatch", folder, "--precision", "bf16", **EMBED, **TASK)
    assert done.returncode == 0, done.stderr
    expected = (
        "-m eval.embed --checkpoint runs/a --slides a b.svs --coords coords --out out --workers 7 --shard 2/4 "
        "--precision bf16"
    )
    assert (folder / "arguments").read_text().split() == expected.split()
    variables = {key: value for key, value in EMBED.items() if key != "CHECKPOINT"}
    assert submit("embed.sbatch", folder, **variables, ENCODER="timm:resnet50").returncode == 0
    assert (folder / "arguments").read_text().split()[2:4] == ["--encoder", "timm:resnet50"]


@pytest.mark.parametrize(("script", "needed"), [("patches.sbatch", PATCHES), ("embed.sbatch", EMBED)])
def test_what_is_missing_is_named(folder: Path, script: str, needed: dict[str, str]) -> None:
    for name in needed:
        done = submit(script, folder, **{key: value for key, value in needed.items() if key != name})
        assert done.returncode != 0
        assert name in done.stderr
    for wrong in ({"SLURM_ARRAY_TASK_MIN": "1"}, {"SLURM_ARRAY_TASK_STEP": "2"}):
        done = submit(script, folder, **needed, **wrong)
        assert (done.returncode, "must be 0-N" in done.stderr) == (2, True)
    (folder / ".venv" / "bin" / "python").unlink()
    done = submit(script, folder, **needed)
    assert (done.returncode, "not found" in done.stderr) == (2, True)
    assert not (folder / "arguments").exists()
