"""Signals and the deadline raise one flag; the job goes back to the queue when it should, and only then."""

import os
import signal
import time

import pytest

from dinov2.train import interrupt
from dinov2.train.interrupt import SIGNALS, StopReason, StopRequest
from dinov2.train.requeue import job_deadline, requeue_if_slurm
from dinov2.utils.errors import ConfigError

JOB = {"SLURM_JOB_ID": "77"}


@pytest.mark.parametrize(("number", "reason"), SIGNALS.items(), ids=lambda value: value.name)
def test_a_signal_is_a_flag(number, reason):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.code() == 0
        os.kill(os.getpid(), number)
        assert stop.code() == reason
        assert (stop.signal, reason.exit_code) == (number, 128 + number)
    assert signal.getsignal(number) == before


def test_sigcont_changes_nothing():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGCONT)
        assert stop.code() == 0


def test_handlers_of_others_are_out_of_the_way_and_come_back():
    calls = []

    def theirs(number, frame):
        calls.append(number)

    before = signal.signal(signal.SIGUSR2, theirs)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert calls == []
            assert stop.code() == StopReason.USR2
        os.kill(os.getpid(), signal.SIGUSR2)
        assert calls == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_ctrl_c_wins_over_other_reasons_and_a_second_one_interrupts(monkeypatch):
    monkeypatch.setattr(interrupt, "CONFIRM_SECONDS", 0.2)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the same Ctrl-C, passed on by a launcher
        assert max(stop.code(), StopReason.USR2) == StopReason.INT
        time.sleep(0.3)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_deadline_is_a_reason_and_no_signal():
    with StopRequest() as stop:
        stop.stop_at(time.time() + 60)
        assert stop.code() == 0
        stop.stop_at(time.time() - 1)
        assert stop.code() == StopReason.DEADLINE
        assert (stop.signal, StopReason.DEADLINE.exit_code) == (None, 124)
        stop.stop_at(None)
        assert stop.code() == StopReason.DEADLINE


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Commands of Slurm that answer with files and write down what they were asked."""

    def set_up(state="RUNNING", end="2000000600", scontrol="exit 0"):
        for name, text in {"squeue": f'[ "$5" = %T ] && echo {state} || echo {end}', "scontrol": scontrol}.items():
            path = tmp_path / name
            path.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/asked\n{text}\n')
            path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        return tmp_path / "asked"

    return set_up


@pytest.mark.parametrize("reason", [StopReason.USR1, StopReason.USR2, StopReason.TERM, StopReason.DEADLINE])
def test_a_running_job_goes_back_to_the_queue(slurm, reason):
    asked = slurm()
    assert requeue_if_slurm(reason, 0, JOB)
    assert "scontrol requeue 77\n" in asked.read_text()


def test_one_job_of_an_array_is_named_alone(slurm):
    asked = slurm()
    assert requeue_if_slurm(StopReason.USR2, 0, JOB | {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3"})
    assert asked.read_text().endswith("scontrol requeue 77_3\n")


@pytest.mark.parametrize(
    ("reason", "rank", "environ"),
    [
        (StopReason.NONE, 0, JOB),
        (StopReason.INT, 0, JOB),
        (StopReason.USR2, 1, JOB),
        (StopReason.USR2, 0, {}),
        (StopReason.USR2, 0, JOB | {"SLURM_RESTART_COUNT": "50"}),
        (StopReason.USR2, 0, JOB | {"SLURM_RESTART_COUNT": "3", "MAX_RESTARTS": "3"}),
    ],
)
def test_when_nothing_is_queued(slurm, reason, rank, environ):
    asked = slurm()
    assert not requeue_if_slurm(reason, rank, environ)
    assert not asked.exists()


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING", ""])
def test_a_job_that_is_no_longer_running_is_left_alone(slurm, state):
    asked = slurm(state)
    assert not requeue_if_slurm(StopReason.TERM, 0, JOB)
    assert "scontrol" not in asked.read_text()


def test_a_refusal_is_reported(slurm, caplog):
    slurm(scontrol="echo Requested operation is presently disabled >&2; exit 1")
    assert not requeue_if_slurm(StopReason.TERM, 0, JOB)
    assert "job 77 could not be queued again (Requested operation is presently disabled)" in caplog.text


def test_the_end_of_a_job(slurm, caplog):
    asked = slurm()
    assert job_deadline(JOB | {"SLURM_JOB_END_TIME": "2000000000"}, 5) == 2000000000 - 300
    assert job_deadline({}, 5) is None
    assert job_deadline(JOB, 0) is None
    assert not asked.exists()
    assert job_deadline(JOB, 2.5) == 2000000600 - 150
    slurm(end="N/A")
    assert job_deadline(JOB, 5) is None
    assert "train.stop_before_minutes has no effect" in caplog.text


def test_a_job_too_short_to_stop_before_its_end_is_refused():
    hour = {"SLURM_JOB_START_TIME": "2000000000", "SLURM_JOB_END_TIME": "2000003600"}
    assert job_deadline(JOB | hour, 59) == 2000000060
    message = r"train\.stop_before_minutes = 60: must be less than the job's time limit, 60 minutes"
    with pytest.raises(ConfigError, match=message):
        job_deadline(JOB | hour, 60)
    with pytest.raises(ConfigError, match="stop_before_minutes = 5"):  # of an old Slurm, asked in the last minutes
        job_deadline(JOB | {"SLURM_JOB_END_TIME": str(int(time.time()) + 200)}, 5)


def test_outside_slurm_the_deadline_is_said_to_be_none(caplog):
    assert job_deadline({}, 5) is None
    assert "train.stop_before_minutes = 5 has no effect: this is no Slurm job" in caplog.text
