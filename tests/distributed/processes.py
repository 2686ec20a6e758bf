"""Starting the processes of a test as torchrun would, without importing PyTorch anew in each of them."""

import multiprocessing
import os
import sys
import traceback
from pathlib import Path

import pytest
from ports import free_port

# Its server imports once, and every process begins as a copy of it.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["dinov2.train.train"])
TIMEOUT = 300


def run_ranks(program, processes, arguments, folder, per_node=None):
    """Run `program(*arguments)`, which returns an exit code, in so many processes; return their codes and outputs.

    Args:
        program: a function of a module.
        processes: how many; one gets no variables of torchrun.
        arguments: for the program.
        folder: where the outputs are kept meanwhile.
        per_node: of how many processes each is told that they share a node; None: of all.
    """
    running, logs = start_ranks(program, processes, arguments, folder, per_node)
    for process in running:
        process.join(TIMEOUT)
    late = [process for process in running if process.exitcode is None]
    for process in late:
        process.kill()
    outputs = [log.read_text() if log.exists() else "" for log in logs]
    if late:
        pytest.fail(f"{len(late)} of {processes} processes did not end within {TIMEOUT} s:\n" + "\n".join(outputs))
    return [process.exitcode for process in running], outputs


def start_ranks(program, processes, arguments, folder, per_node=None):
    """Begin what `run_ranks` does; return the processes and the files of their outputs."""
    port = free_port()
    logs = [Path(folder) / f"rank{rank}-{port}.log" for rank in range(processes)]
    running = []
    for rank, log in enumerate(logs):
        environ = {"OMP_NUM_THREADS": "1"}
        if processes > 1:
            environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank % (per_node or processes)),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(per_node or processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        process = CONTEXT.Process(target=_one_rank, args=(program, arguments, environ, log))
        process.start()
        running.append(process)
    return running, logs


def _one_rank(program, arguments, environ, log):
    os.environ.update(environ)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    try:
        code = program(*arguments)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
