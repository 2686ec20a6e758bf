"""Training jobs on a real Slurm of two nodes: started, ended in every way, and continued where they should be."""

import os
import signal
from pathlib import Path

import pytest
import yaml
from slurm_jobs import ROOT, run, wait_until
from slurm_training import STEPS, assert_same_run, metrics, recipe

pytestmark = pytest.mark.slurm


def test_two_nodes_train_together(whole):
    assert [line["iteration"] for line in metrics(whole)] == list(range(STEPS))
    folder = whole.folder / "run" / "checkpoints" / str(STEPS)
    assert {path.name for path in folder.glob("*.distcp")} == {"__0_0.distcp", "__1_0.distcp"}
    assert yaml.safe_load((whole.folder / "run" / "config.yaml").read_text())["train"]["global_batch_size"] == 4


def test_usr2_leads_to_a_save_a_requeue_and_an_exact_continuation(submit, whole, tiles):
    job = submit("--nodes=2", **recipe(tiles))
    job.wait_for_steps(3)
    run("scancel", "--signal=USR2", job.number)
    job.start_requeued()
    stopped = len(metrics(job))
    assert 3 <= stopped < STEPS
    assert (job.folder / "run" / "checkpoints" / str(stopped)).is_dir()
    job.wait_for("COMPLETED")
    assert_same_run(job, whole)
    assert job.log().count("goes back to the queue") == 1
    assert "Traceback" not in job.log()


def test_a_preempted_job_continues_when_the_urgent_one_is_done(submit, whole, tiles):
    job = submit("--nodes=2", **recipe(tiles))
    job.wait_for_steps(3)
    run("sbatch", "--nodes=2", "--partition=urgent", "--exclusive", f"--chdir={job.folder}", "--wrap=true")
    job.start_requeued()
    assert "SIGTERM: saving" in job.log()
    assert 3 <= len(metrics(job)) < STEPS
    job.wait_for("COMPLETED")
    assert_same_run(job, whole)


def test_the_end_of_time_is_known_without_a_signal(submit, whole, tiles):
    # Thirty seconds after its start, a job of five minutes has 4.5 left.
    job = submit("--nodes=2", "--time=5", **recipe(tiles, stop_before_minutes=4.5, max_steps=400))
    job.start_requeued()
    stopped = len(metrics(job))
    assert "the job's time is nearly over" in job.log()
    assert metrics(job)[:STEPS] == metrics(whole)[:stopped] != []
    job.wait_for_steps(stopped + 1)
    assert f"resuming at step {stopped} of 400" in job.log()


def test_a_cancelled_job_is_not_queued_again(submit, tiles):
    job = submit("--nodes=2", **recipe(tiles))
    job.wait_for_steps(3)
    run("scancel", job.number)
    job.wait_for("CANCELLED")
    wait_until(lambda: not run("squeue", "--noheader", "--states=RUNNING,COMPLETING,PENDING"), 90, job.log)
    assert (job.state(), job.state("Restarts")) == ("CANCELLED", "0")
    assert (job.folder / "run" / "checkpoints" / str(len(metrics(job)))).is_dir()
    assert "COMPLETING: not queued again" in job.log()


def test_ctrl_c_saves_and_ends(submit, tiles):
    job = submit("--nodes=2", **recipe(tiles))
    job.wait_for_steps(3)
    run("scancel", "--signal=INT", job.number)
    job.wait_for("FAILED")
    assert job.state("Restarts") == "0"
    assert (job.folder / "run" / "checkpoints" / str(len(metrics(job)))).is_dir()


def test_a_failing_rank_ends_the_job_with_its_traceback(submit):
    job = submit("--nodes=2", program=Path(__file__).with_name("failing_rank.py"))
    job.wait_for("FAILED")
    assert "[rank1]: ArithmeticError: the loss became too small" in job.log()
    assert "rank 1 of 2" in job.log()


def test_a_job_whose_node_died_resumes_on_the_other(submit, whole, tiles):
    """The node goes silent, as without power: its processes stop answering, and no connection is closed."""
    # With one node free, the job would begin on that one.
    wait_until(lambda: run("sinfo", "--noheader", "--partition=debug", "--format=%D %T") == "2 idle", 90)
    job = submit("--nodes=1-2", **recipe(tiles))
    job.wait_for_steps(8)
    frozen = []
    try:
        for pid in processes_of_node("n2"):
            os.kill(pid, signal.SIGSTOP)
            frozen.append(pid)
        # Slurm finds out by itself after SlurmdTimeout.
        run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
        job.start_requeued()
        stopped = len(metrics(job))
        job.wait_for("COMPLETED")
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGKILL)
        run("bash", ROOT / "scripts" / "slurm_test_cluster.sh", "up")
    (resumed,) = (step for step in range(stopped + 1) if f"resuming at step {step} of {STEPS}" in job.log())
    assert resumed % 4 == 0
    assert stopped - 8 <= resumed <= stopped  # the newest save may still have been under way
    folder = job.folder / "run" / "checkpoints" / str(STEPS)
    assert [path.name for path in folder.glob("*.distcp")] == ["__0_0.distcp"]
    found, expected = metrics(job), metrics(whole)
    assert len(found) == len(expected)
    assert found[:resumed] == expected[:resumed]
    for line, other in zip(found, expected, strict=True):  # one process adds up in another order
        numbers = {key: value for key, value in other.items() if "loss" in key or "norm" in key}
        assert {key: line[key] for key in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-4)


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
