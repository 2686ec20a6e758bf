"""The training program itself in jobs of two nodes."""

import json

import pytest
import yaml
from slurm_jobs import run

from dinov2.utils.config import config_to_dict

pytestmark = pytest.mark.slurm
TIMES = ("data_seconds", "step_seconds", "images_per_second")


@pytest.fixture
def recipe(small):
    """A configuration of thirty steps, as nested dictionaries."""
    config = small(
        train={"checkpoint_period_iterations": 4, "batch_size_per_gpu": 2},
        optim={"epochs": 15, "warmup_epochs": 1},
        parallel={"strategy": "fsdp"},
    )
    return json.loads(json.dumps(config_to_dict(config)))  # lists for tuples, as YAML has them


def metrics(job):
    path = job.folder / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def test_usr2_leads_to_a_save_a_requeue_and_an_exact_continuation(submit, recipe):
    whole = submit("--nodes=2", program="dinov2.train", **recipe)
    whole.wait_for("COMPLETED")
    assert len(metrics(whole)) == 30
    job = submit("--nodes=2", program="dinov2.train", **recipe)
    job.wait_for_steps(3, metrics)
    run("scancel", "--signal=USR2", job.number)
    job.start_requeued()
    assert 3 <= len(metrics(job)) < 30
    assert (job.folder / "run" / "checkpoints" / str(len(metrics(job)))).is_dir()
    job.wait_for("COMPLETED")
    assert metrics(job) == metrics(whole)
    assert yaml.safe_load((job.folder / "run" / "config.yaml").read_text())["train"]["global_batch_size"] == 4
