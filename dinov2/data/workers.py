"""How loader processes behave: one thread each, deaf to signals meant for the run, and gone when the run is gone."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dinov2.data.errors import LoaderError

POLL_SECONDS = 2.0
# How the DataLoader's errors begin when a process died, alone or while its batch was being pinned.
_LOST = ("DataLoader worker", "Pin memory thread")


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


@contextmanager
def deaths_polled() -> Iterator[Callable[[], None]]:
    """Keep a killed loader process from raising an error in the midst of whatever the main process does.

    The first DataLoader of a process installs a handler of SIGCHLD that raises, wherever the main thread is. Without
    it the loader sees the death too, when it waits for a batch, unless it was given a timeout, during which it does not
    look. Yields the function that takes the handler away, to be called when the processes have been started; at the
    end the handler is put back, but not after an error, as of a death whose signal may be yet to come.
    """
    removed: list[Callable[..., object]] = []

    def poll() -> None:
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and handler is not _ignore:
            try:
                signal.signal(signal.SIGCHLD, _ignore)
            except ValueError:  # not the main thread, in which nothing is raised
                return
            removed.append(handler)

    try:
        yield poll
    except Exception:
        removed.clear()
        raise
    finally:
        if removed and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, removed[0])


def lost_worker(error: Exception) -> str:
    """Say why the DataLoader's next batch failed, where that is because a worker died; empty for any other error."""
    said = str(error).partition("\n")[0]
    if isinstance(error, RuntimeError):
        return said if said.startswith(_LOST) else ""
    # The worker died while a batch was being taken over from it; what it raises itself is marked as such.
    cut_off = isinstance(error, ConnectionError | EOFError | FileNotFoundError)
    return f"{type(error).__name__}: {said}" if cut_off and "in DataLoader worker process" not in said else ""


def share(tensor: Tensor) -> Tensor:
    """Move a worker's tensor to shared memory, in place, and return it.

    The worker's queue would do so in a thread of its own: where it fails there, the main process waits for ever.

    Raises:
        LoaderError: there is too little.
    """
    try:
        return tensor.share_memory_()
    except RuntimeError as error:
        raise LoaderError(f"a batch does not fit into shared memory: {error}") from error


def _ignore(*_: object) -> None:
    """Handle a signal by doing nothing; SIG_IGN would keep exit codes from the parent."""


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
