"""Workers outlive signals meant for the run, and do not outlive the run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAM = """
import signal, sys, time
from torch.multiprocessing import active_children
from dinov2.data.datasets import Folder
from dinov2.data.loaders import make_loader
from dinov2.utils.schema import CropsSection, IbotSection

received = []  # an Event could deadlock: handlers run in the middle of its wait
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: received.append(1))
crops = CropsSection(global_crops_size=32, local_crops_size=16, local_crops_number=1)
loader = make_loader(
    Folder(sys.argv[1]), crops, IbotSection(), patch_size=8, global_batch_size=4, seed=0, num_workers=2
)
batches = iter(loader)
next(batches), next(batches)
print(*(child.pid for child in active_children()), flush=True)
while len(received) < 2 and sys.argv[2] == "exit":
    time.sleep(0.05)
for _ in range(12):  # more than was loaded ahead
    next(batches)
print("still loading", flush=True)
if sys.argv[2] == "hang":
    time.sleep(600)
"""


Start = Callable[[Path, str], tuple["subprocess.Popen[str]", list[int]]]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(tiles, end)`: the program in a process group of its own, and its workers' ids; ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(tiles: Path, end: str) -> tuple["subprocess.Popen[str]", list[int]]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tiles), end],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
        started.append(process)
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2, process.communicate()[1]
        return process, pids

    yield run
    for process in started:
        process.kill()
        process.communicate()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _wait_until_gone(pids: list[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(_alive(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_signals_to_the_group_leave_the_workers_loading(tiles: Path, start: Start) -> None:
    process, pids = start(tiles, "exit")
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert "still loading" in out
    assert process.returncode == 0
    assert err == ""
    assert _wait_until_gone(pids, 10)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_when_the_run_is_killed(tiles: Path, start: Start) -> None:
    process, pids = start(tiles, "hang")
    process.kill()
    process.communicate(timeout=60)
    assert _wait_until_gone(pids, 15)
