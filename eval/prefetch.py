"""Preparing the next items in a background thread while the caller works on this one."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


def prefetch(items: Iterator[T], ahead: int = 2) -> Generator[T, None, None]:
    """Yield the items in their order, while a thread gets up to `ahead` of them before they are asked for.

    What getting an item raises is raised here, in its place. Close the generator (`contextlib.closing`) before what the
    items come from is closed: that waits for the item which is being got, and gets no more.
    """
    with ThreadPoolExecutor(1, "prefetch") as thread:  # one, so that the order stays
        coming: deque[Future[T | object]] = deque(thread.submit(next, items, _END) for _ in range(ahead))
        try:
            while (item := coming.popleft().result()) is not _END:
                coming.append(thread.submit(next, items, _END))
                yield item  # type: ignore[misc]
        finally:
            for future in coming:
                future.cancel()
