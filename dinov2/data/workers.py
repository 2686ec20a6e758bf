"""How loader processes behave: one thread each, deaf to signals meant for the run, and gone when the run is gone."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

POLL_SECONDS = 2.0


def init_worker(worker_id: int) -> None:
    """`worker_init_fn` of the loader.

    Ctrl-C and Slurm's SIGTERM reach the whole process group. The main process answers them with a checkpoint, for which
    the workers have to stay alive; only the main process itself may end them. They also end when it disappears.

    Args:
        worker_id: number of the worker, not used.
    """
    torch.set_num_threads(1)
    parent = os.getppid()
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        # Blocked before the thread starts, so that no thread takes it and the guard can ask who sent it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        guard = _obey_parent_only
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        guard = _outlive_no_parent
    threading.Thread(target=guard, args=(parent,), daemon=True).start()


@contextmanager
def single_thread() -> Iterator[None]:
    """Run a block with one torch thread, as in a worker: how work is split over threads can change the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _obey_parent_only(parent: int) -> None:
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, POLL_SECONDS)
        if received is not None and received.si_pid == parent:
            os._exit(0)
    os._exit(1)


def _outlive_no_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)
