"""Ranks from torchrun, Slurm or nothing; a failing rank is named and ends the program."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port

from dinov2.distributed import launch, slurm_nodes
from dinov2.distributed.launch import LaunchError, derived_port, find_launch

PROGRAM = Path(__file__).with_name("ranks.py")
TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "gpu1",
    "MASTER_PORT": "29500",
}
BATCH = {  # the shell of `sbatch --nodes=2 --ntasks-per-node=2`
    "SLURM_JOB_ID": "12345",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
STEP = BATCH | {  # the last task of srun in it
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}


@pytest.fixture(autouse=True)
def names_resolve(monkeypatch):
    monkeypatch.setattr(launch, "reachable_name", lambda node: node)


def test_torchrun():
    found = find_launch(TORCHRUN)
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (3, 4, 1, 2)
    assert (found.source, found.address, found.port) == ("torchrun", "gpu1", 29500)
    assert find_launch(STEP | TORCHRUN) == found


def test_slurm_step():
    found = find_launch(STEP)
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (3, 4, 1, 2)
    assert (found.source, found.address, found.port) == ("slurm", "n1", 20345)
    moved = find_launch(STEP | {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "1234"})
    assert (moved.address, moved.port) == ("10.0.0.7", 1234)
    assert find_launch(STEP | {"SLURM_STEP_NODELIST": "n2", "SLURM_STEP_ID": "1"}).address == "n2"
    assert find_launch(STEP | {"SLURM_STEP_TASKS_PER_NODE": "1,3"}).local_world_size == 3


@pytest.mark.parametrize(
    "environ",
    [
        {},
        BATCH,
        {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": "4"},  # a shell of salloc
        STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290"},  # srun --pty
    ],
)
def test_one_process_without_a_launcher(environ):
    found = find_launch(environ)
    assert (found.rank, found.world_size, found.source) == (0, 1, "single")


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (TORCHRUN | {"RANK": "4"}, r"RANK = 4: must be smaller than WORLD_SIZE = 4; start .* torchrun"),
        (TORCHRUN | {"LOCAL_RANK": "2"}, "LOCAL_RANK = 2: must be smaller than LOCAL_WORLD_SIZE = 2"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE = 8: must not exceed WORLD_SIZE = 4"),
        (TORCHRUN | {"RANK": "-1"}, "RANK = '-1': expected a whole number"),
        (TORCHRUN | {"MASTER_PORT": "70000"}, "MASTER_PORT = 70000: expected 1 to 65535"),
        ({k: v for k, v in TORCHRUN.items() if k != "MASTER_ADDR"}, r"MASTER_ADDR is not set, while RANK=3"),
        ({"LOCAL_RANK": "0"}, r"RANK is not set, while LOCAL_RANK=0"),
        (STEP | {"SLURM_PROCID": "4"}, r"SLURM_PROCID = 4: must be smaller than SLURM_STEP_NUM_TASKS = 4; .* srun"),
        (STEP | {"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS = 'many'"),
        (STEP | {"SLURM_NODEID": "2"}, "SLURM_NODEID = 2"),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "two"}, "SLURM_STEP_TASKS_PER_NODE = 'two'"),
        (STEP | {"SLURM_STEP_NODELIST": "["}, r"node list '\['"),
    ],
)
def test_contradictions_name_the_variable_and_the_fix(environ, message):
    with pytest.raises(LaunchError, match=message):
        find_launch(environ)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[1-3,7]", "n1"),
        ("gpu[07-09,12],cpu1", "gpu07"),
        ("rack[2-3]node[4,6]x,other", "rack2node4x"),
        ("a-b.example.org", "a-b.example.org"),
    ],
)
def test_first_host(nodes, host):
    assert slurm_nodes.first_host(nodes) == host


def test_ports_of_neighbours_differ_and_stay_in_range():
    ports = {derived_port(job, step) for job in range(100, 200) for step in range(3)}
    assert len(ports) == 300
    for job in (1, 2**31, 999_999):
        assert 20000 <= derived_port(job, 2**32 - 6) < 32000


def test_slurms_address_where_a_name_does_not_resolve(tmp_path, monkeypatch):
    fake = tmp_path / "scontrol"
    fake.write_text('#!/bin/sh\necho "NodeName=$3 Arch=x86_64 NodeAddr=127.0.0.9 NodeHostName=localhost"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert slurm_nodes.reachable_name("no-such-host.invalid") == "127.0.0.9"
    assert slurm_nodes.reachable_name("localhost") == "localhost"
    fake.unlink()
    assert slurm_nodes.reachable_name("no-such-host.invalid") == "no-such-host.invalid"


def start(*arguments, ranks=2, **options):
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "RANK", "LOCAL_RANK", "MASTER"))}
    if ranks == 1:
        command = [sys.executable, PROGRAM, *arguments]
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [*torchrun, PROGRAM, *arguments]
    environ |= {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, env=environ, timeout=120, **options)


def start_as_slurm_does(*arguments):
    """Start two tasks with a step's variables and no launcher that would end the second one after the first."""
    processes, port = [], free_port()
    for rank in range(2):
        step = STEP | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
        step |= {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "MASTER_ADDR": "127.0.0.1"}
        step |= {"SLURM_JOB_ID": "7", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(PROGRAM), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=os.environ | step, **pipes))
    try:
        outputs = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], [out for out, _ in outputs], [err for _, err in outputs]


def test_one_process_needs_no_group():
    done = start("add", ranks=1)
    assert done.stdout == "single rank 0 of 1: 1\n", done.stderr


def test_torchrun_adds_over_ranks():
    done = start("add")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["torchrun rank 0 of 2: 3", "torchrun rank 1 of 2: 3"]


def test_slurm_tasks_add_over_ranks():
    codes, outputs, errors = start_as_slurm_does("add")
    assert codes == [0, 0], errors
    assert outputs == [f"slurm rank {rank} of 2: 3\n" for rank in range(2)]


def test_a_failing_rank_is_named_by_the_others():
    codes, _, errors = start_as_slurm_does("raise")
    assert codes == [1, 1]
    assert re.search(r"rank 1 of 2 on \S+ failed: ArithmeticError: boom\n\[rank1\]: Traceback", errors[1])
    assert re.search(r"rank 0 of 2 .* because of another; .* rank 1 of 2 on \S+: ArithmeticError: boom", errors[0])


def test_a_collective_waits_no_longer_than_it_may():
    done = start("sleep", "5")  # which ends it after two minutes
    assert done.returncode != 0
    assert re.search(r"rank 0 of 2 on \S+ failed: .*[Tt]im", done.stderr)


def test_a_failed_rank_does_not_hang_at_its_end():
    codes, _, errors = start_as_slurm_does("stick")
    assert codes == [1, 1]
    assert "Timeout" in errors[1]
