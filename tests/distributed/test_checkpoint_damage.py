"""Damage to a checkpoint's files is found before training goes on with it, and what they say is never executed."""

import errno
import json
import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from dinov2.distributed import checkpoint_sums
from dinov2.distributed.checkpoint import Checkpointer
from dinov2.distributed.training_state import TrainingState
from dinov2.utils.errors import CheckpointError

WEIGHT = 1 << 12  # elements, so that most of a file is tensor data


@pytest.fixture
def saved(tmp_path, small):
    """A state, and the checkpointer that has saved it after steps 1 and 2."""
    model = nn.Linear(WEIGHT, 1)
    state = TrainingState(model, torch.optim.AdamW(model.parameters()), GradScaler("cpu", enabled=False))
    checkpointer = Checkpointer(tmp_path, 9, 1000, background=False)
    for iteration in (1, 2):
        nn.init.constant_(model.weight, iteration)
        checkpointer.save(state, model, iteration, small())
    return state, checkpointer


def flip_middle(path):
    """Change one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def test_a_changed_byte_of_a_tensor_is_found(saved, caplog):
    state, checkpointer = saved
    newest = checkpointer.folder / "2"
    flip_middle(newest / "__0_0.distcp")
    with caplog.at_level(logging.WARNING):
        assert checkpointer.restore(state) == 1
    assert (state.arch.weight == 1).all()
    assert "__0_0.distcp has" in caplog.text
    assert "checkpoint.json says" in caplog.text
    assert (checkpointer.folder / "2.damaged").is_dir()


def test_a_checkpoint_without_checksums_is_read_as_it_is(saved):
    state, checkpointer = saved
    newest = checkpointer.folder / "2"
    about = json.loads((newest / "checkpoint.json").read_text())
    assert set(about.pop("files")) == {".metadata", "__0_0.distcp", "teacher.safetensors"}
    (newest / "checkpoint.json").write_text(json.dumps(about))
    nn.init.zeros_(state.arch.weight)
    assert checkpointer.restore(state) == 2
    assert (state.arch.weight == 2).all()
    flip_middle(newest / "__0_0.distcp")  # which raises nothing by itself
    assert checkpointer.restore(state) == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: flip_middle(folder / "teacher.safetensors"), "teacher.safetensors has"),
        (lambda folder: os.truncate(folder / "__0_0.distcp", 100), "__0_0.distcp has 100 bytes"),
        (lambda folder: (folder / "__0_0.distcp").unlink(), "__0_0.distcp'"),
        (lambda folder: (folder / "checkpoint.json").unlink(), "checkpoint.json'"),
        (lambda folder: (folder / "checkpoint.json").write_text('{"files": '), "JSONDecodeError"),
        (lambda folder: (folder / "checkpoint.json").write_text("[1]"), "AttributeError"),
        (lambda folder: (folder / "checkpoint.json").write_text('{"files": {".metadata": 1}}'), "TypeError"),
    ],
    ids=["teacher", "truncated", "missing", "no_json", "half_json", "list", "number"],
)
def test_whatever_is_damaged_is_named(saved, caplog, damage, message):
    state, checkpointer = saved
    damage(checkpointer.folder / "2")
    with caplog.at_level(logging.WARNING):
        assert checkpointer.restore(state) == 1
    assert message in caplog.text


def test_every_file_has_one_of_several_readers(saved):
    _, checkpointer = saved
    folder = checkpointer.folder / "2"
    for name in ("__0_0.distcp", ".metadata", "teacher.safetensors"):
        content = (folder / name).read_bytes()
        flip_middle(folder / name)
        found = [checkpoint_sums.find_damage(folder, part, 2) for part in range(2)]
        assert sorted(map(bool, found)) == [False, True]
        assert name in "".join(found)
        (folder / name).write_bytes(content)


def test_checksums_that_cannot_be_computed_fail_the_save(saved, small, monkeypatch):
    state, checkpointer = saved

    def unreadable(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(checkpoint_sums, "_sum", unreadable)
    checkpointer.save(state, state.arch, 3, small())
    assert "Input/output error" in checkpointer.wait()
    assert checkpointer.iterations() == [1, 2]


class Marker:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_metadata_that_would_run_something_are_refused(saved, tmp_path, caplog):
    state, checkpointer = saved
    executed = tmp_path / "executed"
    for iteration in (1, 2):
        folder = checkpointer.folder / str(iteration)
        contents = pickle.loads((folder / ".metadata").read_bytes())
        contents.planner_data["model.weight"] = Marker(executed)
        (folder / ".metadata").write_bytes(pickle.dumps(contents))
        (folder / "checkpoint.json").write_text("{}")  # no checksums either
    with pytest.raises(CheckpointError, match=r"its \.metadata names .* nothing of it was executed"):
        checkpointer.restore(state)
    assert not executed.exists()
    pickle.loads((folder / ".metadata").read_bytes())
    assert executed.exists()  # so it would have


def test_a_tensor_that_is_said_to_be_a_pickled_object_is_refused(saved, tmp_path):
    """What the table of contents calls plain bytes would be unpickled without any restriction."""
    state, checkpointer = saved
    executed = tmp_path / "executed"
    for iteration in (1, 2):
        folder = checkpointer.folder / str(iteration)
        contents = pickle.loads((folder / ".metadata").read_bytes())
        contents.state_dict_metadata["iteration"] = BytesStorageMetadata()
        index = next(index for index in contents.storage_data if index.fqn == "iteration")
        data = pickle.dumps(Marker(executed))
        contents.storage_data[type(index)("iteration")] = type(contents.storage_data[index])("evil", 0, len(data))
        (folder / "evil").write_bytes(data)
        (folder / ".metadata").write_bytes(pickle.dumps(contents))
        (folder / "checkpoint.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"names torch\.\S+\.BytesStorageMetadata"):
        checkpointer.restore(state)
    assert not executed.exists()
