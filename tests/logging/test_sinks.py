"""metrics.jsonl and tensorboard: readable, complete after a restart, and no danger to a run on a full disk."""

import errno
import json
import logging
import os
import struct
from pathlib import Path

import pytest
from tensorboardX.proto import event_pb2

from dinov2.logging.sinks import MetricsLog


def events(folder):
    """Read tensorboard's files: records of an 8-byte length, its 4-byte checksum, the event and its checksum."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(folder):
    return [(e.step, v.tag, v.simple_value) for e in events(folder) for v in e.summary.value]


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_both_hold_every_number(tmp_path):
    with MetricsLog(tmp_path, 0, 3) as log:
        for step in range(3):
            log.log(step, {"total_loss": 1.5 + step, "lr": 0.25})
            log.advance()
    assert lines(tmp_path) == [{"iteration": s, "total_loss": 1.5 + s, "lr": 0.25} for s in range(3)]
    assert scalars(tmp_path / "tensorboard") == [
        (s, name, value) for s in range(3) for name, value in (("total_loss", 1.5 + s), ("lr", 0.25))
    ]


def test_what_is_not_finite_is_null(tmp_path):
    with MetricsLog(tmp_path, 0, 1) as log:
        log.log(0, {"total_loss": float("nan"), "lr": float("inf"), "wd": 0.5})
    assert lines(tmp_path) == [{"iteration": 0, "total_loss": None, "lr": None, "wd": 0.5}]
    assert scalars(tmp_path / "tensorboard") == [(0, "wd", 0.5)]


def test_a_restart_forgets_what_it_repeats(tmp_path):
    with MetricsLog(tmp_path, 0, 5) as log:
        for step in range(4):
            log.log(step, {"total_loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 4, "total_l')
    with MetricsLog(tmp_path, 2, 5) as log:
        log.log(2, {"total_loss": 2.0})
    assert [(line["iteration"], line["total_loss"]) for line in lines(tmp_path)] == [(0, 1.0), (1, 1.0), (2, 2.0)]
    starts = [e.step for e in events(tmp_path / "tensorboard") if e.HasField("session_log")]
    assert starts == [0, 2]


def test_a_full_disk_is_said_once_and_costs_lines_only(tmp_path, monkeypatch, caplog):
    class Full:
        def __init__(self, file):
            self.file, self.full = file, False

        def write(self, text):
            if self.full:
                self.file.write(text[:5])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.file.write(text)

        def close(self):
            self.file.close()

    with caplog.at_level(logging.WARNING), MetricsLog(tmp_path, 0, 9) as log:
        disk = log._file = Full(log._file)
        board = log._events._open
        for step in range(6):
            disk.full = step in (2, 3)
            log._events._writer = None if disk.full else log._events._writer
            log._events._open = _raise_full if disk.full else board
            log.log(step, {"total_loss": float(step)})
    text = (tmp_path / "metrics.jsonl").read_text()
    whole = [json.loads(line)["iteration"] for line in text.splitlines() if line.endswith("}")]
    assert whole == [0, 1, 4, 5]
    assert [step for step, _, _ in scalars(tmp_path / "tensorboard")] == [0, 1, 4, 5]
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR", "WARNING", "WARNING"]


def _raise_full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_device_that_is_really_full(tmp_path, caplog):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = MetricsLog(tmp_path, 0, 2)
    with log:
        log.log(0, {"total_loss": 1.0})
        log.log(1, {"total_loss": 1.0})
    assert caplog.text.count("No space left on device") == 1
    assert len(scalars(tmp_path / "tensorboard")) == 2
