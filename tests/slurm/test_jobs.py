"""Training jobs on a real Slurm of two nodes: started, interrupted in every way, and continued."""

import os
import signal
from pathlib import Path

import pytest
from slurm_jobs import ROOT, run, wait_until

pytestmark = pytest.mark.slurm
SLOW = {"step_seconds": 0.2, "steps": 20}


@pytest.fixture(scope="session")
def whole(make_job):
    """A job of two nodes that ran through."""
    job = make_job("--nodes=2", steps=20)
    job.wait_for("COMPLETED")
    return job


def test_two_nodes_train_together(whole):
    steps = whole.steps()
    assert [line["step"] for line in steps] == list(range(20))
    assert {(line["world"], line["nodes"]) for line in steps} == {(2, "n[1-2]")}
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert {path.name for path in (whole.folder / "run" / "0020").glob("*.distcp")} == {"__0_0.distcp", "__1_0.distcp"}


def test_usr2_saves_requeues_and_continues_exactly(submit, whole):
    job = submit("--nodes=2", **SLOW)
    job.wait_for_steps(5)
    run("scancel", "--signal=USR2", job.number)
    job.start_requeued()
    stopped = len(job.steps())
    assert stopped < 20
    assert (job.folder / "run" / f"{stopped:04d}").is_dir()
    job.wait_for("COMPLETED")
    assert job.losses() == whole.losses()
    assert job.log().count("goes back to the queue") == 1
    assert "Traceback" not in job.log()


def test_a_preempted_job_continues_when_the_urgent_one_is_done(submit, whole):
    job = submit("--nodes=2", **SLOW)
    job.wait_for_steps(5)
    urgent = submit("--nodes=2", "--partition=urgent", "--exclusive", steps=1)
    urgent.wait_for("COMPLETED")
    assert "SIGTERM: saving" in job.log()
    job.start_requeued()
    job.wait_for("COMPLETED")
    assert job.losses() == whole.losses()


def test_the_end_of_time_is_known_without_a_signal(submit, whole):
    # Thirty seconds after its start, a job of five minutes has 4.5 left.
    job = submit("--nodes=2", "--time=5", step_seconds=2.0, steps=20, stop_before_minutes=4.5)
    job.start_requeued()
    assert "the job's time is nearly over" in job.log()
    assert job.losses() == whole.losses()[: len(job.steps())] != []


def test_a_cancelled_job_is_not_queued_again(submit):
    job = submit("--nodes=2", **SLOW)
    job.wait_for_steps(5)
    run("scancel", job.number)
    job.wait_for("CANCELLED")
    wait_until(lambda: not run("squeue", "--noheader", "--states=RUNNING,COMPLETING,PENDING"), 90, job.log)
    assert (job.state(), job.state("Restarts")) == ("CANCELLED", "0")
    assert (job.folder / "run" / f"{len(job.steps()):04d}").is_dir()
    assert "COMPLETING: not queued again" in job.log()


def test_ctrl_c_saves_and_ends(submit):
    job = submit("--nodes=2", **SLOW)
    job.wait_for_steps(5)
    run("scancel", "--signal=INT", job.number)
    job.wait_for("FAILED")
    assert job.state("Restarts") == "0"
    assert (job.folder / "run" / f"{len(job.steps()):04d}").is_dir()


def test_a_failing_rank_ends_the_job_with_its_traceback(submit):
    job = submit("--nodes=2", fail_at=3, **SLOW)
    job.wait_for("FAILED")
    assert "[rank1]: ArithmeticError: the loss became too small" in job.log()
    assert "rank 1 of 2" in job.log()
    assert len(job.steps()) < 20


def test_a_job_whose_node_died_resumes_on_the_other(submit, whole):
    """The node goes silent, as without power: its processes stop answering, and no connection is closed."""
    # With one node free, the job would begin on that one.
    wait_until(lambda: run("sinfo", "--noheader", "--partition=debug", "--format=%D %T") == "2 idle", 90)
    job = submit("--nodes=1-2", save_every=5, **SLOW)
    job.wait_for_steps(8)
    frozen = []
    try:
        for pid in processes_of_node("n2"):
            os.kill(pid, signal.SIGSTOP)
            frozen.append(pid)
        # Slurm finds out by itself after SlurmdTimeout.
        run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
        job.start_requeued()
        before = len(job.steps())
        job.wait_for_steps(before + 1)
        job.wait_for("COMPLETED")
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGKILL)
        run("bash", ROOT / "scripts" / "slurm_test_cluster.sh", "up")
    resumed = job.steps()[before:]
    assert resumed[0]["step"] in (5, 10)
    assert {(line["world"], line["nodes"]) for line in resumed} == {(1, "n1")}
    expected = dict(whole.losses())
    assert all(abs(line["loss"] - expected[line["step"]]) < 1e-4 for line in resumed)
    assert resumed[-1]["step"] == 19


def processes_of_node(node):
    """Return the process ids of a node's slurmd and of everything that runs under it."""
    daemon = int((Path(os.environ["SLURM_CONF"]).parent / f"{node}.pid").read_text())
    marked = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                environ = (folder / "environ").read_bytes().split(b"\0")
                children = (folder / "status").read_text()
            except OSError:
                continue
            if f"SLURMD_NODENAME={node}".encode() in environ:
                parent = int(children.split("PPid:")[1].split()[0])
                marked += [int(folder.name), parent]  # a task's parent is its slurmstepd
    assert marked, f"nothing runs on {node}"
    return [pid for pid in dict.fromkeys([daemon, *marked]) if pid > 1]
