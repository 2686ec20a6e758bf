"""Asking Slurm, and what a test wants to know of a job."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*command, **environ):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=os.environ | environ, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout.strip()


def wait_until(condition, seconds, describe=lambda: ""):
    """Return the first true value of `condition()`; fail with `describe()` after some seconds."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {describe()}"
        time.sleep(0.2)
    return value


class Job:
    """A job of `slurm/pretrain.sbatch` in a folder of its own."""

    def __init__(self, number, folder):
        self.number, self.folder = number, folder

    def log(self):
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.out")))

    def state(self, key="JobState"):
        return re.search(rf"\b{key}=(\S+)", run("scontrol", "show", "job", self.number, "--oneliner"))[1]

    def steps(self):
        """Return what the training wrote, a dictionary a step."""
        path = self.folder / "run" / "losses.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def losses(self):
        return [(line["step"], line["loss"]) for line in self.steps()]

    def wait_for_steps(self, count, steps_of=steps, seconds=90):
        wait_until(lambda: len(steps_of(self)) >= count, seconds, lambda: f"{self.state()}\n{self.log()}")

    def wait_for(self, *states, seconds=120):
        wait_until(lambda: self.state() in states, seconds, lambda: f"{self.state()}\n{self.log()}")

    def start_requeued(self, seconds=120):
        """Wait until the job is back in the queue, and start it without the two minutes that Slurm would wait.

        Those are there for a reason: a node that is still ending the job's processes would end the new ones too.
        """
        wait_until(
            lambda: (self.state(), self.state("Restarts")) == ("PENDING", "1"),
            seconds,
            lambda: f"{self.state()}\n{self.log()}",
        )
        wait_until(lambda: not self.daemons(), seconds, lambda: f"still ending: {self.daemons()}\n{self.log()}")
        time.sleep(2)  # until the controller has heard of it
        run("scontrol", "update", f"JobId={self.number}", "StartTime=now")

    def daemons(self):
        """Return the processes by which Slurm watches over the job on all nodes, which are on this machine.

        A stopped one (state T) belongs to a node that a test has silenced: it will not end.
        """
        command = ["pgrep", "--runstates=D,R,S", "-af", rf"slurmstepd: \[{self.number}[].]"]
        return subprocess.run(command, capture_output=True, text=True).stdout
