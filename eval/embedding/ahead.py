"""Working ahead of a consumer in a thread of the same process."""

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class _End:
    """The last thing in the queue: the iterator's end, or the error that ended it."""

    error: BaseException | None = None


def read_ahead(items: Iterator[T], limit: int) -> Generator[T, None, None]:
    """Yield what an iterator yields, drawn in a thread that is at most `limit` items ahead.

    An error of the iterator is raised here, after the items before it. Closing the generator, also by an error or an
    interrupt of the consumer, ends the thread after the item at which it is, and closes the iterator if it can be.
    """
    ready: queue.Queue[T | _End] = queue.Queue(limit)
    stop = threading.Event()

    def put(item: T | _End) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        end = _End()
        try:
            with closing(items) if isinstance(items, Generator) else nullcontext():
                for item in items:
                    if not put(item):
                        break
        except BaseException as error:  # whatever it is, the consumer must not wait for ever
            end = _End(error)
        put(end)

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        thread.join()
