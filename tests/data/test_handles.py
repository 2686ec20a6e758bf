"""The most recently used files stay open, and each process has its own."""

import os
import pickle
from multiprocessing import get_context

from dinov2.data.datasets.handles import OpenFiles


class _Log:
    """Counts what is open."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.most = 0
        self.opened = 0

    def open_file(self, path: str) -> str:
        self.open.add(path)
        self.opened += 1
        self.most = max(self.most, len(self.open))
        return path

    def close(self, path: str) -> None:
        self.open.remove(path)


def test_least_recently_used_is_closed() -> None:
    log = _Log()
    files = OpenFiles(log.open_file, log.close, limit=2)
    for path in ("a", "b", "a", "c"):
        with files.open(path) as handle:
            assert handle == path
    assert log.open == {"a", "c"}
    assert log.most == 2
    assert log.opened == 3
    files.close()
    assert not log.open


def test_copies_are_closed() -> None:
    log = _Log()
    files = OpenFiles(log.open_file, log.close, limit=2)
    with files.open("a"):
        pass
    copy = pickle.loads(pickle.dumps(files))
    assert len(files) == 1
    assert len(copy) == 0


def test_a_forked_process_opens_its_own() -> None:
    files = OpenFiles(lambda path: (path, os.getpid()), lambda handle: None, limit=2)
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
