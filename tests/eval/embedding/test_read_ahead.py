"""Reading ahead in a thread: order, errors, and an end to the thread however the consumer ends."""

import threading
import time

import pytest

from eval.embedding.ahead import read_ahead


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "read-ahead"]


class Counted:
    """An iterator of numbers that knows how far it got, and whether it was closed."""

    def __init__(self, count: int, fails: bool = False) -> None:
        self.count, self.fails, self.drawn, self.closed = count, fails, 0, False

    def items(self):
        try:
            while self.drawn < self.count:
                self.drawn += 1
                yield self.drawn
            if self.fails:
                raise ValueError("broken")
        finally:
            self.closed = True


@pytest.mark.parametrize("limit", [1, 3])
def test_everything_comes_in_order(limit) -> None:
    source = Counted(20)
    assert list(read_ahead(source.items(), limit)) == list(range(1, 21))
    assert source.closed
    assert threads() == []


def test_an_error_comes_after_the_items_before_it() -> None:
    ahead = read_ahead(Counted(3, fails=True).items(), 2)
    assert [next(ahead) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(ValueError, match="broken"):
        next(ahead)
    assert threads() == []


def test_it_stays_within_its_limit_and_ends_with_the_consumer() -> None:
    source = Counted(1000)
    ahead = read_ahead(source.items(), 2)
    assert next(ahead) == 1
    deadline = time.monotonic() + 10
    while source.drawn < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert source.drawn == 4  # one taken, two ready, one waiting for room
    ahead.close()
    assert (source.closed, source.drawn, threads()) == (True, 4, [])


def test_an_interrupt_of_the_consumer_ends_the_thread() -> None:
    source = Counted(1000)

    def consume() -> None:
        for item in read_ahead(source.items(), 2):
            if item == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert (source.closed, threads()) == (True, [])
    assert source.drawn < 10
