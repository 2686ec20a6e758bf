import threading
from contextlib import closing

import pytest

from eval.prefetch import prefetch


def numbers(got, stop=10, fail_at=None):
    """0, 1, ...; notes in `got` what was asked for, and by which thread."""
    for i in range(stop):
        got.append((i, threading.current_thread()))
        if i == fail_at:
            raise ValueError(f"no item {i}")
        yield i


@pytest.mark.parametrize("ahead", [1, 2, 20])
def test_all_items_in_their_order(ahead):
    got = []
    assert list(prefetch(numbers(got), ahead)) == list(range(10))
    assert [i for i, _ in got] == list(range(10))
    assert threading.current_thread() not in {thread for _, thread in got}


def test_the_next_items_are_got_while_the_caller_works_and_no_more():
    third, got = threading.Event(), []

    def items():
        for i in range(9):
            got.append(i)
            if i == 2:
                third.set()
            yield i

    with closing(prefetch(items(), ahead=2)) as found:
        assert next(found) == 0
        assert third.wait(60)  # 1 and 2 are got although only 0 was asked for
        assert next(found) == 1
    assert got in ([0, 1, 2], [0, 1, 2, 3])


def test_an_error_is_raised_in_its_place():
    found = prefetch(numbers([], fail_at=3))
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="no item 3"):
        next(found)
    assert list(found) == []


def test_the_thread_ends_with_a_caller_that_stops():
    got, before = [], threading.active_count()

    def caller():
        with closing(prefetch(numbers(got), ahead=2)) as found:
            for item in found:
                if item == 1:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        caller()
    assert threading.active_count() == before
    assert len(got) <= 4
