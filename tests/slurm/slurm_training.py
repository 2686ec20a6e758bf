"""The configuration of the jobs that train, and what they leave behind."""

import json

import torch
from safetensors.torch import load_file
from small_runs import SMALL

from dinov2.utils.config import config_from_dict, config_to_dict

STEPS = 60
TIMES = ("data_seconds", "step_seconds", "images_per_second")


def recipe(tiles, **train):
    """Return a configuration of `STEPS` steps of four images on one or two processes, as nested dictionaries."""
    values = {key: dict(section) for key, section in SMALL.items()}
    values["train"] |= {"dataset_path": f"Folder:root={tiles}", "global_batch_size": 4, "max_steps": STEPS}
    values["train"] |= {"checkpoint_period_iterations": 4} | train
    values["optim"] = {"epochs": 200, "warmup_epochs": 1}  # of two steps: a schedule that no job reaches the end of
    values["parallel"] = {"strategy": "fsdp"}
    return json.loads(json.dumps(config_to_dict(config_from_dict(values))))  # lists for tuples, as YAML has them


def metrics(job):
    """Return what a job's run has logged in whole lines, a dictionary a step, without times."""
    path = job.folder / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    steps = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{key: value for key, value in step.items() if key not in TIMES} for step in steps]


def assert_same_run(job, whole):
    """Raise AssertionError unless a job has logged the numbers of another, and ends with its weights, bit for bit."""
    assert metrics(job) == metrics(whole)
    found, expected = (load_file(each.folder / "run" / "teacher.safetensors") for each in (job, whole))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
