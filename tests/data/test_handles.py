"""The most recently used files stay open, and each process has its own."""

import os
import pickle
from multiprocessing import get_context

import pytest

from dinov2.data.datasets import handles
from dinov2.data.datasets.handles import OpenFiles


@pytest.fixture(autouse=True)
def two_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files open at most, none yet."""
    monkeypatch.setattr(handles, "LIMIT", 2)
    monkeypatch.setattr(handles, "_pool", handles._Pool())


class _Log:
    """Counts what is open."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.opened = 0

    def open_file(self, path: str) -> str:
        self.open.append(path)
        self.opened += 1
        assert len(self.open) <= 2
        return path

    def close(self, path: str) -> None:
        self.open.remove(path)


def test_least_recently_used_is_closed() -> None:
    log = _Log()
    files = OpenFiles(log.open_file, log.close)
    for path in ("a", "b", "a", "c"):
        with files.open(path) as handle:
            assert handle == path
    assert log.open == ["a", "c"]
    assert log.opened == 3


def test_the_limit_is_that_of_all_data_sets_together() -> None:
    log = _Log()
    for path in ("a", "a", "b"):  # another data set each
        with OpenFiles(log.open_file, log.close).open(path):
            pass
    assert log.open == ["a", "b"]


def _pair(path: str) -> list[str]:
    return [path]


def test_copies_open_their_own() -> None:
    files = OpenFiles(_pair, list.clear)
    with files.open("a") as one:
        pass
    with pickle.loads(pickle.dumps(files)).open("a") as other:
        assert other == one == ["a"]
        assert other is not one


def test_a_forked_process_opens_its_own() -> None:
    files = OpenFiles(lambda path: (path, os.getpid()), lambda handle: None)
    with files.open("a") as (_, here):
        assert here == os.getpid()
    context = get_context("fork")
    queue = context.Queue()

    def look() -> None:
        with files.open("a") as (_, there):
            queue.put(there)

    process = context.Process(target=look)
    process.start()
    there = queue.get(timeout=30)
    process.join()
    assert there == process.pid != here


def test_a_file_that_cannot_be_opened_is_tried_again() -> None:
    answers = iter([OSError("busy"), "handle"])

    def open_file(path: str) -> str:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    files = OpenFiles(open_file, lambda handle: None)
    with pytest.raises(OSError, match="busy"), files.open("a"):
        pass
    with files.open("a") as handle:
        assert handle == "handle"
