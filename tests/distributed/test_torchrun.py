"""What becomes of a signal to torchrun: its processes save together, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dinov2.utils.config import to_yaml

pytestmark = pytest.mark.slow
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def steps_in(run):
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def signalled(number, options, small, tmp_path):
    """Train in two processes under torchrun, send it a signal after a step or two; return its exit code and log."""
    config = tmp_path / "config.yaml"
    config.write_text(to_yaml(small(train={"batch_size_per_gpu": 2}, optim={"epochs": 10**6})))
    program = ["-m", "dinov2.train", "--config-file", str(config), "--output-dir", str(tmp_path / "run")]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [*TORCHRUN, *options, *program], stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        try:
            end = time.monotonic() + 120
            while not steps_in(tmp_path / "run") and process.poll() is None and time.monotonic() < end:
                time.sleep(0.1)
            process.send_signal(number)
            process.wait(120)
        finally:
            process.kill()
    return process.returncode, (tmp_path / "log").read_text()


def assert_saved(run, log):
    steps = steps_in(run)
    assert steps > 0, log
    assert (run / "checkpoints" / str(steps)).is_dir(), log
    assert f"stopped at step {steps} of" in log


def test_sigterm_to_torchrun_saves_the_last_step(small, tmp_path):
    code, log = signalled(signal.SIGTERM, [], small, tmp_path)
    assert_saved(tmp_path / "run", log)
    assert "SIGTERM: saving a checkpoint at the end of this step" in log
    assert code == 1  # torchrun's own


def test_sigusr2_to_torchrun_saves_where_it_is_told_to_pass_it_on(small, tmp_path):
    shown = subprocess.run([*TORCHRUN, "--help"], capture_output=True, text=True, check=True).stdout
    if "--signals-to-handle" not in shown:
        pytest.skip("this release's torchrun passes no other signals on")
    options = ["--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1,SIGUSR2", "--shutdown-timeout", "120"]
    _, log = signalled(signal.SIGUSR2, options, small, tmp_path)
    assert_saved(tmp_path / "run", log)
    assert "SIGUSR2: saving a checkpoint at the end of this step" in log
