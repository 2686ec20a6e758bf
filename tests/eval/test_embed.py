import h5py
import numpy as np
import pytest

from eval.embed import embed_file, embed_task
from eval.encoders import ColorStats
from eval.errors import EvalError
from eval.hest_data import load_task


class Counting(ColorStats):
    """Counts the patches it sees, and may fail at one of them."""

    def __init__(self, fail_at=None):
        self.seen, self.fail_at = 0, fail_at

    def embed(self, images):
        self.seen += len(images)
        if self.fail_at is not None and self.seen > self.fail_at:
            raise KeyboardInterrupt
        return super().embed(images)


def test_second_run_embeds_nothing(bench, tmp_path):
    task = load_task(bench, "TOY")
    first = embed_task(ColorStats(), task, tmp_path / "cache", batch_size=7)
    assert first.embedded == 72
    encoder = Counting()
    encoder.name = "renamed"
    second = embed_task(encoder, task, tmp_path / "cache")
    assert (second.embedded, encoder.seen) == (0, 0)
    for name in "ABC":
        np.testing.assert_array_equal(first.features[name], second.features[name])


def test_changed_patches_are_embedded_again(bench, tmp_path):
    embed_task(ColorStats(), load_task(bench, "TOY"), tmp_path / "cache")
    with h5py.File(bench / "TOY" / "patches" / "B.h5", "r+") as file:
        file["img"][5] = 0
    again = embed_task(ColorStats(), load_task(bench, "TOY"), tmp_path / "cache")
    assert again.embedded == 24
    assert (again.features["B"][5] == 0).all()


def test_interrupted_run_resumes_at_the_unfinished_sample(bench, tmp_path):
    task = load_task(bench, "TOY")
    with pytest.raises(KeyboardInterrupt):
        embed_task(Counting(fail_at=30), task, tmp_path / "cache", batch_size=8)
    assert len(list((tmp_path / "cache").glob("*.h5"))) == 1
    assert embed_task(ColorStats(), task, tmp_path / "cache").embedded == 48


def test_unreadable_cache_is_embedded_again(bench, tmp_path, caplog):
    task = load_task(bench, "TOY")
    embed_task(ColorStats(), task, tmp_path / "cache")
    next(iter((tmp_path / "cache").glob("*.h5"))).write_bytes(b"half a file")
    assert embed_task(ColorStats(), task, tmp_path / "cache").embedded == 24
    assert "embedding again" in caplog.text


def test_batch_size_does_not_change_the_result(bench):
    path = bench / "TOY" / "patches" / "A.h5"
    whole, parts = (embed_file(ColorStats(), path, batch_size=b) for b in (100, 5))
    np.testing.assert_array_equal(whole, parts)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_embeddings_are_an_error_and_not_cached(bench, tmp_path, value):
    class Broken(ColorStats):
        def embed(self, images):
            out = super().embed(images)
            out[3, 2] = value
            return out

    with pytest.raises(EvalError, match=r"NaN or infinite embedding for patch 3 of .*[ABC]\.h5"):
        embed_task(Broken(), load_task(bench, "TOY"), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
