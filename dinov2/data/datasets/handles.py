"""Open files of a worker: opened when first needed, a bounded number at a time, none shared with a forked process."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

Handle = TypeVar("Handle")


class OpenFiles(Generic[Handle]):
    """The most recently used files of a data set, open.

    Args:
        open_file: opens a path; must pickle.
        close: closes what it returned; must pickle.
        limit: files open at most.
    """

    def __init__(self, open_file: Callable[[str], Handle], close: Callable[[Handle], None], limit: int = 32) -> None:
        self._open_file = open_file
        self._close = close
        self._limit = limit
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._handles: OrderedDict[str, Handle] = OrderedDict()
        self._process = os.getpid()

    @contextmanager
    def open(self, path: str) -> Iterator[Handle]:
        """The open file, for one thread at a time; raises what opening raises."""
        if self._process != os.getpid():  # forked: the handles and the lock are the parent's
            self._reset()
        with self._lock:
            if path not in self._handles:
                while len(self._handles) >= self._limit:
                    self._close(self._handles.popitem(last=False)[1])
                self._handles[path] = self._open_file(path)
            self._handles.move_to_end(path)
            yield self._handles[path]

    def close(self) -> None:
        """Close all files."""
        while self._handles:
            self._close(self._handles.popitem()[1])

    def __len__(self) -> int:
        return len(self._handles)

    def __getstate__(self) -> dict[str, Any]:
        return {"_open_file": self._open_file, "_close": self._close, "_limit": self._limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()
