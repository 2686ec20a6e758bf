"""Asking Slurm, and what a test wants to know of a job."""

import os
import re
import subprocess
import time
from pathlib import Path

from slurm_training import metrics

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
    """A job in a folder of its own, where it trains in `run` and writes its output to the files of `logs`."""

    def __init__(self, number, folder, logs="*.out"):
        self.number, self.folder, self.logs = number, folder, logs

    def log(self):
        return "".join(path.read_text() for path in sorted(self.folder.glob(self.logs)) if path.is_file())

    def state(self, key="JobState"):
        return re.search(rf"\b{key}=(\S+)", run("scontrol", "show", "job", self.number, "--oneliner"))[1]

    def wait_for_steps(self, count, seconds=90):
        wait_until(lambda: len(metrics(self)) >= count, seconds, lambda: f"{self.state()}\n{self.log()}")

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
