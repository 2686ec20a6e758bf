"""Worker processes that may die: each task runs in one of them, and a death costs that task only.

`concurrent.futures` gives up on all tasks when one process is killed (by the kernel, for lack of memory, say). Here the
death is reported for the task at hand, and another process takes the next one.
"""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import cv2

Progress = Callable[[int], None]
Work = Callable[[Any, Progress], Any]


@dataclass(frozen=True)
class Advanced:
    """A task got on by `count` units."""

    task: int
    count: int


@dataclass(frozen=True)
class Finished:
    """A task returned `result`."""

    task: int
    result: Any


@dataclass(frozen=True)
class Died:
    """The process of a task ended before the task did, or its work raised an exception."""

    task: int
    reason: str


Event = Advanced | Finished | Died


def run_tasks(
    work: Work, tasks: Sequence[Any], workers: int, spoils: Callable[[Any], bool] = lambda _: False
) -> Iterator[Event]:
    """Run `work(task, progress)` for every task and yield what happens, in the order in which it does.

    Args:
        work: picklable; calls `progress(n)` when it has done n units.
        tasks: picklable.
        workers: processes; 0 runs the tasks here, one after the other.
        spoils: whether a result says that its process should not be used again (HDF5, for one, does not recover from a
            full disk); the next task then has a new one.

    Closing the iterator ends the processes.
    """
    if workers == 0:
        yield from _run_here(work, tasks)
        return
    context = multiprocessing.get_context("spawn")  # a fork would take along the threads of OpenCV and PyTorch
    waiting = list(range(len(tasks)))[::-1]
    busy: dict[Connection, tuple[SpawnProcess, int]] = {}

    def start(process: SpawnProcess | None = None, connection: Connection | None = None) -> None:
        """Give the next task to a process, a new one where none is given."""
        if process is None or connection is None:
            connection, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(work, theirs), daemon=True)
            process.start()
            theirs.close()
        task = waiting.pop()
        busy[connection] = (process, task)
        with suppress(BrokenPipeError):  # it was killed while idle, which its end of the pipe will tell
            connection.send(tasks[task])

    try:
        while waiting and len(busy) < workers:
            start()
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                process, task = busy[ready]
                try:
                    kind, value = ready.recv()
                except (EOFError, OSError):
                    del busy[ready]
                    process.join()
                    if waiting:
                        start()
                    yield Died(task, _epitaph(process.exitcode))
                    continue
                if kind == "advanced":
                    yield Advanced(task, value)
                    continue
                del busy[ready]
                if waiting and not (kind == "finished" and spoils(value)):
                    start(process, ready)
                else:
                    ready.close()  # the process sees the end and goes
                    process.join()
                    if waiting:
                        start()
                yield Finished(task, value) if kind == "finished" else Died(task, value)
    finally:
        for connection, (process, _) in busy.items():
            process.terminate()
            process.join()
            connection.close()


def _run_here(work: Work, tasks: Sequence[Any]) -> Iterator[Event]:
    for number, task in enumerate(tasks):
        counts: list[int] = []
        try:
            result = work(task, counts.append)
        except Exception as error:
            yield Died(number, f"{type(error).__name__}: {error}")
            continue
        yield Advanced(number, sum(counts))
        yield Finished(number, result)


def _serve(work: Work, connection: Connection) -> None:
    """Loop of a worker process: until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by which half-written files are removed
    cv2.setNumThreads(1)  # the processes are the parallelism
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            result = work(task, lambda count: connection.send(("advanced", count)))
        except Exception as error:
            connection.send(("died", f"{type(error).__name__}: {error}"))
        else:
            connection.send(("finished", result))


def _epitaph(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; the system may have run out of memory: use fewer --workers" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {code}"
