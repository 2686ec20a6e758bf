import mmap

import h5py
import numpy as np
import pytest

from eval.embed import embed_task
from eval.encoders import ColorStats
from eval.errors import EvalError
from eval.hest_data import load_task, read_barcodes
from eval.mapped import mapped_dataset, mapped_npy
from eval.precomputed import Precomputed
from eval.protocol import evaluate
from eval.settings import FitSettings


def is_mapped(array):
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


def write_h5(path, values, **how):
    with h5py.File(path, "w") as file:
        file.create_dataset("before", data=np.arange(7))
        file.create_dataset("embeddings", data=values, **how)


@pytest.mark.parametrize(
    ("dtype", "how", "on_disk"),
    [
        (np.float32, {}, True),
        (np.float32, {"chunks": (4, 3)}, False),
        (np.float32, {"compression": "gzip"}, False),
        (np.float16, {}, False),
        (">f4", {}, False),
    ],
)
def test_a_dataset_is_mapped_where_it_lies_in_one_piece(tmp_path, dtype, how, on_disk):
    values = np.random.default_rng(0).normal(size=(20, 3)).astype(dtype)
    write_h5(tmp_path / "a.h5", values, **how)
    with h5py.File(tmp_path / "a.h5") as file:
        found = mapped_dataset(tmp_path / "a.h5", file["embeddings"])
    np.testing.assert_array_equal(found, values.astype(np.float32))
    assert (found.dtype, is_mapped(found)) == (np.float32, on_disk)


def test_an_empty_dataset(tmp_path):
    write_h5(tmp_path / "a.h5", np.zeros((0, 3), np.float32))
    with h5py.File(tmp_path / "a.h5") as file:
        assert mapped_dataset(tmp_path / "a.h5", file["embeddings"]).shape == (0, 3)


@pytest.mark.parametrize(("dtype", "on_disk"), [(np.float32, True), (np.float64, False)])
def test_a_npy_file(tmp_path, dtype, on_disk):
    values = np.random.default_rng(0).normal(size=(20, 3)).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    found = mapped_npy(tmp_path / "a.npy")
    np.testing.assert_array_equal(found, values.astype(np.float32))
    assert is_mapped(found) == on_disk
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(EvalError, match=r"not a readable \.npy file"):
        mapped_npy(tmp_path / "a.npy")


@pytest.mark.parametrize("head", ["ridge", "ridge-tuned", "pls", "knn"])
def test_scores_are_the_same_from_disk_and_from_memory(bench, tmp_path, head):
    task = load_task(bench, "TOY")
    cached = embed_task(ColorStats(), task, tmp_path / "cache", progress=False).features
    for sample in task.samples:
        values = np.array(cached[sample.name])
        if sample.name == "A":
            np.save(tmp_path / "A.npy", values)
        else:
            with h5py.File(tmp_path / f"{sample.name}.h5", "w") as file:
                file["embeddings"], file["barcode"] = values, np.array(read_barcodes(sample.patches), dtype="S")
    settings = FitSettings(head=head, components=3) if head == "pls" else FitSettings(head=head)
    given = Precomputed(f"precomputed:{tmp_path}").features(task)
    assert all(is_mapped(values) for values in (*cached.values(), *given.values()))
    from_memory = evaluate({name: np.array(values) for name, values in cached.items()}, task, settings)[0].record
    assert evaluate(cached, task, settings)[0].record == from_memory
    assert evaluate(given, task, settings)[0].record == from_memory
