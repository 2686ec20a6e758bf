"""Worker processes: a death costs its task only, and nobody outlives the iterator."""

import os
import signal
import time

import pytest

from eval.patching.pool import Advanced, Died, Finished, run_tasks


def work(task, progress):
    """Squares, except for tasks that misbehave; runs in another process, hence at module level."""
    if task == "raise":
        raise ValueError("bad task")
    if task == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "exit":
        os._exit(7)
    if task == "sleep":
        time.sleep(60)
    if task == "pid":
        return os.getpid()
    progress(2)
    progress(3)
    return task**2


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_do_not_depend_on_the_workers(workers) -> None:
    events = list(run_tasks(work, [3, 5, 7], workers))
    assert sorted((e.task, e.result) for e in events if isinstance(e, Finished)) == [(0, 9), (1, 25), (2, 49)]
    assert [sum(e.count for e in events if isinstance(e, Advanced) and e.task == i) for i in range(3)] == [5, 5, 5]


def test_a_killed_worker_costs_its_task_only() -> None:
    events = list(run_tasks(work, [1, "kill", 2, "raise", "exit", 3], 1))
    died = {event.task: event.reason for event in events if isinstance(event, Died)}
    assert set(died) == {1, 3, 4}
    assert "ended by SIGKILL; the system may have run out of memory" in died[1]
    assert died[3] == "ValueError: bad task"
    assert "exit code 7" in died[4]
    assert [event.result for event in events if isinstance(event, Finished)] == [1, 4, 9]


def test_closing_the_iterator_ends_the_processes() -> None:
    events = run_tasks(work, ["pid", "sleep", "sleep"], 2)
    first = next(events)
    assert isinstance(first, Finished)
    events.close()
    with pytest.raises(ProcessLookupError):
        os.kill(first.result, 0)


def own_number(task, progress):
    """Return the number of its process; runs in another process, hence at module level."""
    return task, os.getpid()


def spoils_two(result) -> bool:
    return result[0] == 2


def test_a_spoiled_process_is_not_used_again() -> None:
    events = run_tasks(own_number, [1, 2, 3, 4], 1, spoils_two)
    numbers = dict(event.result for event in events if isinstance(event, Finished))
    assert numbers[1] == numbers[2] != numbers[3] == numbers[4]
