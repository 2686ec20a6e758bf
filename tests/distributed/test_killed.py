"""kill -9 at any moment: no checkpoint is corrupted, hardly a step is lost, and what follows is as if nothing was."""

import json
import random
import signal
import time

import pytest
from processes import TIMEOUT, run_ranks, start_ranks
from safetensors.torch import load_file

from dinov2.distributed import checkpoint_folder, checkpoint_sums
from dinov2.train.train import main
from dinov2.utils.config import to_yaml

TIMES = ("data_seconds", "step_seconds", "images_per_second")
STEPS = 12


@pytest.fixture
def command(small, tmp_path):
    """Return a function that gives the command line of a run that saves every step, in a folder of that name."""
    train = {"checkpoint_period_iterations": 1, "global_batch_size": 4, "max_steps": STEPS}
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(small(train=train, optim={"epochs": STEPS // 2, "warmup_epochs": 1})))
    return lambda name: ["--config-file", str(path), "--output-dir", str(tmp_path / name)]


def metrics(run):
    """Return the lines of a run's log that are whole."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def kill_at(running, logs, run, steps, delay):
    """Kill all processes so many seconds after a step was logged; return how many were then."""
    end = time.monotonic() + TIMEOUT
    while len(metrics(run)) < steps:
        assert all(process.is_alive() for process in running), "".join(log.read_text() for log in logs)
        assert time.monotonic() < end
        time.sleep(0.005)
    time.sleep(delay)
    for process in running:
        process.kill()
    for process in running:
        process.join(TIMEOUT)
    assert [process.exitcode for process in running] == [-signal.SIGKILL] * len(running)  # none had ended by itself
    return len(metrics(run))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_is_the_run_that_never_was(processes, command, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    codes, outputs = run_ranks(main, processes, [command("whole")], tmp_path)
    assert codes == [0] * processes, "\n".join(outputs)
    draw = random.Random(0)
    for steps in (1, 4, 7) if processes == 1 else (1, 3, 4, 6, 7, 9):
        running, logs = start_ranks(main, processes, [command("killed")], tmp_path)
        logged = kill_at(running, logs, killed, steps, draw.uniform(0, 0.05))
        saved = checkpoint_folder.iterations(killed / "checkpoints")
        # A save begins when the one before is on disk, and the log is a step ahead of it.
        assert max(saved, default=0) >= logged - 2
        assert not any(checkpoint_sums.find_damage(killed / "checkpoints" / str(step), 0, 1) for step in saved)
    codes, outputs = run_ranks(main, processes, [command("killed")], tmp_path)
    assert codes == [0] * processes, "\n".join(outputs)
    assert not list((killed / "checkpoints").glob("*.damaged"))
    for line, expected in zip(metrics(killed), metrics(whole), strict=True):
        assert {k: v for k, v in line.items() if k not in TIMES} == {
            k: v for k, v in expected.items() if k not in TIMES
        }
    found, expected = (load_file(run / "teacher.safetensors") for run in (killed, whole))
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in expected)
