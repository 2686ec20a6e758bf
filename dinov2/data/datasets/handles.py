"""Open files of a worker: opened when first needed, a bounded number at a time, none shared with a forked process."""

import itertools
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

Handle = TypeVar("Handle")

MOST_OPEN = 256  # an open HDF5 file takes about half a MB
# Files open at most in a process, over all data sets: a mixture may have many, and others need files, too.
LIMIT = max(min(MOST_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4), 1)


class _Pool:
    """The files of this process, the least recently used first."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.lock = threading.Lock()
        self.files: OrderedDict[tuple[int, str], tuple[Any, Callable[[Any], None]]] = OrderedDict()


_pool = _Pool()
_owners = itertools.count()


class OpenFiles(Generic[Handle]):
    """The files of a data set, by path.

    Args:
        open_file: opens a path; must pickle.
        close: closes what it returned; must pickle.
    """

    def __init__(self, open_file: Callable[[str], Handle], close: Callable[[Handle], None]) -> None:
        self._open_file = open_file
        self._close = close
        self._owner = next(_owners)

    @contextmanager
    def open(self, path: str) -> Iterator[Handle]:
        """The open file, for one thread at a time; raises what opening raises."""
        global _pool
        if _pool.process != os.getpid():  # forked: the files and the lock are the parent's
            _pool = _Pool()
        files, key = _pool.files, (self._owner, path)
        with _pool.lock:
            if key not in files:
                while len(files) >= LIMIT:
                    handle, close = files.popitem(last=False)[1]
                    close(handle)
                files[key] = self._open_file(path), self._close
            files.move_to_end(key)
            yield files[key][0]

    def __getstate__(self) -> dict[str, Any]:
        return {"_open_file": self._open_file, "_close": self._close}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _owner=next(_owners))
