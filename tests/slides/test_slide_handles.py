"""A bounded number of open slides, which neither pickles nor survives a fork."""

import multiprocessing
import pickle

import numpy as np
import pytest

from dinov2.slides.handles import OpenSlides


@pytest.fixture
def paths(tmp_path, write_slide):
    return [write_slide(tmp_path / f"{i}.tif", np.full((64, 64, 3), i, np.uint8)) for i in range(4)]


def test_the_least_recently_used_is_closed(paths) -> None:
    slides = OpenSlides(limit=2)
    first, second = slides.get(paths[0]), slides.get(paths[1])
    assert slides.get(paths[0]) is first
    slides.get(paths[2])
    assert len(slides) == 2
    assert slides.get(paths[0]) is first
    assert slides.get(paths[1]) is not second
    for i, path in enumerate(paths * 3):
        assert slides.get(path).read_region((0, 0), 0, (1, 1))[0, 0, 0] == i % 4
    slides.close()
    assert len(slides) == 0


def test_pickles_without_its_slides(paths) -> None:
    slides = OpenSlides(limit=3)
    slides.get(paths[1])
    again = pickle.loads(pickle.dumps(slides))
    assert (len(again), again.limit) == (0, 3)
    assert again.get(paths[1]).read_region((0, 0), 0, (1, 1))[0, 0, 0] == 1


def test_a_fork_opens_its_own(paths) -> None:
    slides = OpenSlides()
    here = slides.get(paths[0])
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=lambda: queue.put(slides.get(paths[0]) is here))
    process.start()
    assert queue.get(timeout=30) is False
    process.join()
    assert slides.get(paths[0]) is here
