"""Workers outlive signals meant for the run, and do not outlive the run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import signal, sys, threading
from itertools import islice
from torch.multiprocessing import active_children
from dinov2.data.datasets import Folder
from dinov2.data.loaders import make_loader
from dinov2.utils.schema import CropsSection, IbotSection

stopped = threading.Event()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: stopped.set())
crops = CropsSection(global_crops_size=32, local_crops_size=16, local_crops_number=1)
loader = make_loader(
    Folder(sys.argv[1]), crops, IbotSection(), patch_size=8, global_batch_size=4, seed=0, num_workers=2
)
batches = iter(loader)
next(batches), next(batches)
print(*(child.pid for child in active_children()), flush=True)
stopped.wait()
for _ in range(12):  # more than was loaded ahead
    next(batches)
print("still loading", flush=True)
if sys.argv[2] == "hang":
    threading.Event().wait()
"""


def _start(tiles: Path, end: str) -> tuple["subprocess.Popen[str]", list[int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tiles), end],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2, process.communicate()[1]
    return process, pids


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
def test_signals_to_the_group_leave_the_workers_loading(tiles: Path) -> None:
    process, pids = _start(tiles, "exit")
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert "still loading" in out
    assert process.returncode == 0
    assert err == ""
    assert _wait_until_gone(pids, 10)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_when_the_run_is_killed(tiles: Path) -> None:
    process, pids = _start(tiles, "hang")
    process.kill()
    process.communicate(timeout=60)
    assert _wait_until_gone(pids, 15)
