"""Jobs that submitit hands to a real Slurm: their results come back, also from a job that was interrupted."""

import os
import sys

import cloudpickle
import pytest
import torch
import torch.distributed as dist
import yaml
from slurm_jobs import Job, run, wait_until

from dinov2.distributed.launch import find_launch
from dinov2.distributed.process_group import process_group
from dinov2.run.executor import Resources, start_jobs
from dinov2.run.task import conclude, release_signals

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # jobs cannot import the tests
pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]
TWO_NODES = Resources(nodes=2, gpus=0, minutes=5, cpus_per_task=1, memory="1000M", partition="debug")


@pytest.fixture
def start(tmp_path):
    """Return a function that submits a task on two nodes; its job is gone after the test."""
    jobs = []

    def submit(task):
        jobs.extend(start_jobs([task], "slurm", tmp_path / "submitit", TWO_NODES, "test"))
        return jobs[-1]

    yield submit
    for job in jobs:
        job.cancel(check=False)
        wait_until(lambda job=job: job.job_id not in run("squeue", "--noheader", "--format=%i").split(), 30)


def result_of(job, seconds=120):
    """Wait for the job's result files; asking submitit for the state needs accounting, which the cluster has not."""
    paths = [task.paths.result_pickle for task in (job.task(0), job.task(1))]
    wait_until(lambda: all(path.exists() for path in paths), seconds, lambda: f"{job.stdout()}\n{job.stderr()}")
    return job.results()


def add_over_ranks():
    launch = find_launch(os.environ)
    with process_group(launch, "cpu", 2):
        total = torch.tensor(launch.rank + 1)
        dist.all_reduce(total)
    return launch.source, launch.rank, int(total), os.environ["SLURMD_NODENAME"]


def test_results_come_back_from_both_nodes(start):
    assert result_of(start(add_over_ranks)) == [("slurm", 0, 3, "n1"), ("slurm", 1, 3, "n2")]


def test_usr2_stops_all_ranks_and_the_requeued_job_brings_the_result(start, tmp_path):
    program = os.path.join(os.path.dirname(__file__), "small_training.py")
    (tmp_path / "run").mkdir()
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({"steps": 20, "step_seconds": 0.2}))
    arguments = ["--config-file", str(tmp_path / "plan.yaml"), "--output-dir", str(tmp_path / "run")]

    def train():
        import importlib.util

        release_signals()
        spec = importlib.util.spec_from_file_location("small_training", program)
        module = sys.modules["small_training"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return conclude(module.main(arguments), os.environ)

    submitted = start(train)
    job = Job(submitted.job_id, tmp_path)
    job.wait_for_steps(5)
    run("scancel", "--signal=USR2", job.number)
    job.start_requeued()
    assert len(job.steps()) < 20
    assert result_of(submitted) == [0, 0]
    assert [line["step"] for line in job.steps()] == list(range(20))
    for task in range(2):
        log = submitted.task(task).stderr()
        assert "SIGUSR2: saving a checkpoint at the end of this step" in log
        assert "Caught signal" not in submitted.task(task).stdout() + log  # submitit's handler
