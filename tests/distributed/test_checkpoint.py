"""Checkpoints are written in the background, appear whole, and cost no run when they cannot be written."""

import errno
import logging
import os
import re
import threading
import time
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.amp import GradScaler

from dinov2.distributed import checkpoint, checkpoint_folder
from dinov2.distributed.checkpoint import Checkpointer
from dinov2.distributed.training_state import TrainingState
from dinov2.train.trainer import Trainer
from dinov2.utils.errors import CheckpointError


@pytest.fixture
def state():
    """A model that a step changes everywhere."""
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    return TrainingState(model, torch.optim.AdamW(model.parameters(), lr=0.1), GradScaler("cpu", enabled=False))


def step(state):
    state.optimizer.zero_grad()
    state.arch(torch.randn(3, 8)).square().sum().backward()
    state.optimizer.step()


@pytest.fixture
def slow_disk(monkeypatch):
    """Let the test decide when a save may write."""
    may_write, save = threading.Event(), checkpoint.save

    def waiting(*args, **kwargs):
        assert may_write.wait(30)
        return save(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save", waiting)
    return may_write


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_training_goes_on_while_a_save_writes_what_was_there_when_it_began(state, tmp_path, small, slow_disk):
    checkpointer = Checkpointer(tmp_path, 2, 1000)
    step(state)
    weight = state.arch.weight.detach().clone()
    moment = state.optimizer.state[state.arch.weight]["exp_avg"].clone()
    checkpointer.save(state, state.arch, 1, small())
    step(state)
    assert checkpointer.iterations() == []
    slow_disk.set()
    assert checkpointer.wait() == ""
    assert not torch.equal(weight, state.arch.weight)
    assert torch.equal(weight, load_file(tmp_path / "teacher.safetensors")["weight"])
    assert checkpointer.restore(state) == 1
    assert torch.equal(weight, state.arch.weight)
    assert torch.equal(moment, state.optimizer.state[state.arch.weight]["exp_avg"])


def test_generators_are_those_of_the_moment_of_the_save(state, tmp_path, small, slow_disk):
    checkpointer = Checkpointer(tmp_path, 2, 1000)
    checkpointer.save(state, state.arch, 1, small())
    following = torch.rand(3)
    slow_disk.set()
    checkpointer.restore(state) if not checkpointer.wait() else None
    assert torch.equal(torch.rand(3), following)


def test_in_the_foreground_all_is_written_when_save_returns(state, tmp_path, small):
    checkpointer = Checkpointer(tmp_path, 2, 1000, background=False)
    checkpointer.save(state, state.arch, 3, small())
    assert checkpointer.iterations() == [3]


def test_newest_and_every_nth_are_kept_and_latest_follows(state, tmp_path, small):
    checkpointer = Checkpointer(tmp_path, 2, 4)
    for iteration in range(1, 8):
        checkpointer.save(state, state.arch, iteration, small())
    checkpointer.wait()
    assert checkpointer.iterations() == [4, 6, 7]
    assert os.readlink(tmp_path / "checkpoints" / "latest") == "7"
    assert (tmp_path / "teacher.safetensors").samefile(tmp_path / "checkpoints" / "7" / "teacher.safetensors")


def test_an_export_never_gives_way_to_an_older_checkpoint(state, tmp_path, small, slow_disk):
    checkpointer = Checkpointer(tmp_path, 2, 1000)
    checkpointer.save(state, state.arch, 1, small())
    threading.Timer(0.2, slow_disk.set).start()
    checkpointer.export(state.arch, 2, small())
    weight = state.arch.weight.detach().clone()
    step(state)
    checkpointer.wait()
    assert torch.equal(weight, load_file(tmp_path / "teacher.safetensors")["weight"])
    with safe_open(tmp_path / "teacher.safetensors", "pt") as file:
        assert file.metadata()["iteration"] == "2"


def test_what_a_killed_save_left_is_removed(state, tmp_path, small):
    checkpointer = Checkpointer(tmp_path, 2, 1000)
    checkpointer.save(state, state.arch, 1, small())
    checkpointer.wait()
    left = checkpoint_folder.unfinished(checkpointer.folder, 2)
    left.mkdir()
    (left / "__0_0.distcp").write_bytes(b"half")
    assert checkpointer.restore(state) == 1
    assert not left.exists()


def test_a_file_system_without_links_is_good_enough(state, tmp_path, small, monkeypatch):
    monkeypatch.setattr(os, "link", full_disk)
    monkeypatch.setattr(type(tmp_path), "symlink_to", full_disk)
    checkpointer = Checkpointer(tmp_path, 2, 1000)
    checkpointer.save(state, state.arch, 1, small())
    assert checkpointer.wait() == ""
    own, shared = tmp_path / "teacher.safetensors", tmp_path / "checkpoints" / "1" / "teacher.safetensors"
    assert own.read_bytes() == shared.read_bytes()
    assert not own.samefile(shared)


@pytest.mark.parametrize("where", ["save", "save_backbone"])
def test_a_failed_save_is_loud_and_costs_nothing(small, tmp_path, monkeypatch, caplog, where):
    """The second of four saves finds the disk full."""
    whole, calls = getattr(checkpoint, where), []

    def failing(*args, **kwargs):
        calls.append(1)
        return full_disk() if len(calls) == 2 else whole(*args, **kwargs)

    monkeypatch.setattr(checkpoint, where, failing)
    trainer = Trainer(small(train={"keep_last_checkpoints": 9}), tmp_path / "run")
    with caplog.at_level(logging.ERROR):
        assert trainer.run() == 0
    assert "CHECKPOINT 4 COULD NOT BE WRITTEN: [Errno 28] No space left on device" in caplog.text
    assert trainer.checkpointer.iterations() == [2, 6, 8]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_a_last_save_that_fails_is_an_error(small, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "save", full_disk)
    trainer = Trainer(small(train={"max_steps": 3}), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"after step 3 could not be written .* No space left .* from step 0"):
        trainer.run()


def test_every_moment_of_a_save_leaves_something_to_go_on_from(state, tmp_path, small, monkeypatch):
    """Kill the writer at each of its steps in turn: what is left always restores, with nothing half-written used."""

    class KilledError(BaseException):
        pass

    events = ["make_empty", "publish", "sync_folder", "share_file"]
    for first, second in pairwise([*events, None]):
        run = tmp_path / str(first)
        checkpointer = Checkpointer(run, 2, 1000, background=False)
        checkpointer.save(state, state.arch, 1, small())
        with monkeypatch.context() as patch:

            def kill(*args, **kwargs):
                raise KilledError

            patch.setattr(checkpoint_folder, first, kill)
            with pytest.raises(KilledError):
                checkpointer.save(state, state.arch, 2, small())
        fresh = Checkpointer(run, 2, 1000)
        assert fresh.restore(state) == (2 if first == "share_file" else 1), second
        assert not list((run / "checkpoints").glob(".*.tmp"))


def test_an_old_checkpoint_loses_its_name_before_its_files(state, tmp_path, small, monkeypatch):
    checkpointer = Checkpointer(tmp_path, 1, 1000, background=False)
    checkpointer.save(state, state.arch, 1, small())
    named, rmtree = [], checkpoint_folder.shutil.rmtree

    def watching(path, **options):
        named.append((path.name, checkpoint_folder.iterations(checkpointer.folder)))
        rmtree(path, **options)

    monkeypatch.setattr(checkpoint_folder.shutil, "rmtree", watching)
    checkpointer.save(state, state.arch, 2, small())
    assert (".1.tmp", [2]) in named
    assert not list(checkpointer.folder.glob(".*.tmp"))


def test_what_training_waited_for_is_said_as_it_was(state, tmp_path, small, slow_disk, caplog):
    """A disk that writes when it is told to: the save in the background returns before, the other one after."""
    with caplog.at_level(logging.INFO):
        checkpointer = Checkpointer(tmp_path / "background", 2, 1000)
        checkpointer.save(state, state.arch, 1, small())
        time.sleep(0.5)
        slow_disk.set()
        checkpointer.wait()
        slow_disk.clear()
        threading.Timer(0.5, slow_disk.set).start()
        Checkpointer(tmp_path / "foreground", 2, 1000, background=False).save(state, state.arch, 1, small())
    numbers = [list(map(float, re.findall(r"\d+\.\d+", message))) for message in caplog.messages]
    (waited, written), (waited_in_front, written_in_front) = numbers
    assert written >= 0.5
    assert waited < written
    assert waited_in_front >= written_in_front >= 0.4


def test_without_a_thread_nothing_is_copied(state, tmp_path, small, monkeypatch):
    copies = []
    monkeypatch.setattr(checkpoint, "host_copy", copies.append)
    Checkpointer(tmp_path, 2, 1000, background=False).save(state, state.arch, 1, small())
    assert not copies


def test_damaged_checkpoints_stay_until_another_one_is_in_use(state, tmp_path, small):
    checkpointer = Checkpointer(tmp_path, 9, 1000, background=False)
    for iteration in (1, 2):
        checkpointer.save(state, state.arch, iteration, small())
    kept = {i: (checkpointer.folder / str(i) / ".metadata").read_bytes() for i in (1, 2)}
    for iteration in (1, 2):
        (checkpointer.folder / str(iteration) / ".metadata").write_bytes(b"")
    for _ in range(2):  # the same command again does not begin anew
        with pytest.raises(CheckpointError, match="none of the run's checkpoints can be read"):
            checkpointer.restore(state)
    (checkpointer.folder / "1" / ".metadata").write_bytes(kept[1])
    assert checkpointer.restore(state) == 1
    assert (checkpointer.folder / "2.damaged").is_dir()
    assert checkpointer.iterations() == [1]
