"""Jobs that submitit hands to a real Slurm: their results come back, also from one that was interrupted."""

import os
import re
import subprocess
import sys

import cloudpickle
import pytest
import torch
import torch.distributed as dist
import yaml
from slurm_jobs import ROOT, Job, run, wait_until
from slurm_training import STEPS, assert_same_run, metrics, recipe

from dinov2.distributed.launch import find_launch
from dinov2.distributed.process_group import process_group
from dinov2.run.executor import Resources, start_jobs

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # jobs cannot import the tests
pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]
TWO_NODES = Resources(nodes=2, gpus=0, minutes=5, cpus_per_task=1, memory="1000M", partition="debug")


def add_over_ranks():
    launch = find_launch(os.environ)
    with process_group(launch, "cpu", 2):
        total = torch.tensor(launch.rank + 1)
        dist.all_reduce(total)
    return launch.source, launch.rank, int(total), os.environ["SLURMD_NODENAME"]


def test_results_come_back_from_both_nodes(tmp_path):
    (job,) = start_jobs([add_over_ranks], "slurm", tmp_path / "submitit", TWO_NODES, "test")
    try:
        paths = [task.paths.result_pickle for task in (job.task(0), job.task(1))]
        # Asking submitit for the state needs accounting, which the cluster has not.
        wait_until(lambda: all(path.exists() for path in paths), 120, lambda: f"{job.stdout()}\n{job.stderr()}")
        assert job.results() == [("slurm", 0, 3, "n1"), ("slurm", 1, 3, "n2")]
    finally:
        job.cancel(check=False)


def test_the_command_line_submits_a_job_that_is_stopped_requeued_and_continued(tmp_path, tiles, whole):
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(recipe(tiles)))
    resources = ["--nodes", "2", "--ngpus", "0", "--cpus-per-task", "1", "--mem", "1000M", "--time", "5"]
    what = ["--config-file", "plan.yaml", "--output-dir", "run", "train.num_threads=1"]
    done = subprocess.run(
        [sys.executable, "-m", "dinov2.run.submit", "--partition", "debug", *resources, *what],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    job = Job(re.search(r"submitted job (\d+)", done.stdout)[1], tmp_path, "run/submitit/**/*log.*")
    try:
        job.wait_for_steps(3)
        run("scancel", "--signal=USR2", job.number)
        job.start_requeued()
        assert 3 <= len(metrics(job)) < STEPS
        job.wait_for("COMPLETED")
    finally:
        run("scancel", job.number)
    assert_same_run(job, whole)
    assert "SIGUSR2: saving a checkpoint at the end of this step" in job.log()
    assert "Caught signal" not in job.log()  # submitit's handler
