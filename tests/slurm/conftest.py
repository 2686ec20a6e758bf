"""The test cluster, jobs on it that are gone after their test, and a place where `slurm/pretrain.sbatch` runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from slurm_jobs import ROOT, Job, run, wait_until
from slurm_training import recipe
from small_runs import write_tiles


@pytest.fixture(scope="session")
def cluster():
    """SLURM_CONF points to the running test cluster; skips where there is none."""
    script = ["bash", str(ROOT / "scripts" / "slurm_test_cluster.sh"), "status"]
    done = subprocess.run(script, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(done.stderr.strip())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", done.stdout.strip())
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]:
            patch.delenv(name)
        yield Path(done.stdout.strip()).parent


@pytest.fixture(scope="session")
def make_job(cluster, tmp_path_factory):
    """Return a function that submits `slurm/pretrain.sbatch` with a configuration, or with another program."""
    numbers = []

    def make(*options, program=None, **plan):
        folder = tmp_path_factory.mktemp("job")
        (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
        python = folder / "venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        arguments = program or '"$@"'
        python.write_text(f"#!/usr/bin/env bash\nPYTHONPATH={ROOT} exec {sys.executable} {arguments}\n")
        python.chmod(0o755)
        environ = {"CONFIG": "plan.yaml", "OUTPUT_DIR": "run", "VENV": "venv"}
        # Two minutes would be too little time: the job is told of its end two to three minutes before.
        resources = ["--gpus-per-node=0", "--cpus-per-task=1", "--mem=1000", "--time=5", f"--chdir={folder}"]
        script = ROOT / "slurm" / "pretrain.sbatch"
        # sbatch takes the submit folder from where it is called.
        command = ["sbatch", "--parsable", *resources, *options, script]
        done = subprocess.run(
            [*map(str, command)], capture_output=True, text=True, cwd=folder, env=os.environ | environ, timeout=30
        )
        assert done.returncode == 0, done.stderr
        numbers.append(done.stdout.strip())
        return Job(numbers[-1], folder)

    yield make
    if numbers:
        subprocess.run(["scancel", *numbers], capture_output=True)


@pytest.fixture(scope="session")
def tiles(tmp_path_factory):
    """A folder of twelve smooth random tiles, which all jobs train on."""
    return write_tiles(tmp_path_factory.mktemp("data") / "tiles")


@pytest.fixture(scope="session")
def whole(make_job, tiles):
    """A job of two nodes that trained without interruption."""
    job = make_job("--nodes=2", **recipe(tiles))
    job.wait_for("COMPLETED")
    return job


@pytest.fixture
def submit(make_job):
    """`make_job`, whose jobs are gone after the test."""
    jobs = []

    def make(*options, **plan):
        jobs.append(make_job(*options, **plan))
        return jobs[-1]

    yield make
    for job in jobs:
        subprocess.run(["scancel", job.number], capture_output=True)
    for job in jobs:
        wait_until(lambda job=job: job.number not in run("squeue", "--noheader", "--format=%i").split(), 60)
