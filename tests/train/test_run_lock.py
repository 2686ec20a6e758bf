"""One trainer a folder."""

import fcntl
import os
import subprocess
import sys

import pytest

from dinov2.train.run_lock import run_lock
from dinov2.train.trainer import Trainer
from dinov2.utils.errors import RunFolderError

HOLD = """
import sys
from pathlib import Path
from dinov2.train.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_trainer_is_refused_until_the_first_is_gone_however_it_went(small, tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    trainer = Trainer(small(train={"max_steps": 1}), folder)
    with pytest.raises(RunFolderError, match=rf"in use by another training process \(process {holder.pid} on "):
        trainer.run()
    assert not (folder / "config.yaml").exists()
    holder.kill()
    holder.communicate()
    assert trainer.run() == 0
    assert Trainer(small(train={"max_steps": 2}), folder).run() == 0


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def refuse(*args):
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with run_lock(tmp_path / "run"):
        pass
    assert "cannot be locked" in caplog.text
