"""The rule that stops a run on damaged tiles."""

import logging

import numpy as np
import pytest

from dinov2.data.bad_tiles import BadTileMonitor
from dinov2.data.errors import TooManyBadTilesError


def _bad(*numbers: int) -> list[tuple[str, str]]:
    return [(f"/tiles/{number}.png", "cut off") for number in numbers]


def test_each_path_is_logged_once_with_a_counter(caplog: pytest.LogCaptureFixture) -> None:
    monitor = BadTileMonitor(0.5, 100)
    with caplog.at_level(logging.WARNING):
        monitor.update(_bad(1, 2, 1), 10)
        monitor.update(_bad(2), 10)
    assert [record.getMessage() for record in caplog.records] == [
        "bad tile 1, replaced by another: /tiles/1.png: cut off",
        "bad tile 2, replaced by another: /tiles/2.png: cut off",
    ]


def test_an_early_bad_tile_in_a_large_set_does_not_stop() -> None:
    monitor = BadTileMonitor(0.01, 100_000)
    monitor.update(_bad(*range(10)), 10)
    with pytest.raises(TooManyBadTilesError):
        monitor.update(_bad(10), 10)


def test_allowance_grows_with_the_tiles_seen() -> None:
    monitor = BadTileMonitor(0.01, 100_000)
    monitor.update([], 5000)
    assert monitor.allowed == 50
    monitor.update([], 10**6)
    assert monitor.allowed == 1000  # no more than the set holds


def test_small_set_tolerates_one_and_zero_tolerates_none() -> None:
    BadTileMonitor(0.01, 20).update(_bad(1), 4)
    with pytest.raises(TooManyBadTilesError):
        BadTileMonitor(0.01, 20).update(_bad(1, 2), 4)
    with pytest.raises(TooManyBadTilesError):
        BadTileMonitor(0.0, 100_000).update(_bad(1), 4)


def test_few_tiles_that_are_drawn_often_stop_the_run() -> None:
    monitor = BadTileMonitor(0.01, 1_000_000)
    for _ in range(7):
        monitor.update(_bad(1, 1, 1), 18)  # one of three tiles, of a part with half of the weight
    with pytest.raises(
        TooManyBadTilesError, match=r"24 of 144 samples, 16\.7%, were of tiles .* large weight:\n  /tiles/1"
    ):
        monitor.update(_bad(1, 1, 1), 18)  # 10 + 4 sqrt(10) = 22.6
    assert list(monitor.paths) == ["/tiles/1.png"]


@pytest.mark.parametrize(("n", "bad"), [(20, 1), (300, 3), (5000, 30)])
def test_chance_does_not_stop_a_rank_of_several(n: int, bad: int) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        monitor = BadTileMonitor(0.01, n)
        for _ in range(2000):
            monitor.update(_bad(*(t for t in rng.integers(n, size=8).tolist() if t < bad)), 8)


def test_error_says_how_many_which_and_what_to_change() -> None:
    monitor = BadTileMonitor(0.01, 100)
    with pytest.raises(TooManyBadTilesError) as caught:
        monitor.update(_bad(*range(7)), 70)
    message = str(caught.value)
    for part in (
        "7 tiles",
        "10.0% of the 70",
        "/tiles/0.png: cut off",
        "and 2 more",
        "data.max_bad_fraction (now 0.01",
    ):
        assert part in message
