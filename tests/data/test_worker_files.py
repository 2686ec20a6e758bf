"""The files that loader processes hold open: those of the data set, each once, and no more from batch to batch."""

import os
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import pytest

from dinov2.data.datasets import make_dataset
from dinov2.data.loaders import make_loader
from dinov2.data.pack import main as pack
from dinov2.slides import Coordinates, open_slide, write_coordinates
from dinov2.slides.coordinates import geometry_at_level
from dinov2.utils.schema import CropsSection, IbotSection

WORKERS = 8
IN_FLIGHT = 2 * 6  # batches that a worker has ready, and shared tensors in each


@pytest.fixture
def mixture(tiles: Path, tmp_path: Path, write_slide: Callable[..., Path]) -> str:
    """Three shards, three HDF5 files and two slides."""
    assert pack([f"Folder:root={tiles}", "--out", str(tmp_path / "tar"), "--shard-size", "7"]) == 0
    rng = np.random.default_rng(0)
    for number in range(3):
        (tmp_path / "h5").mkdir(exist_ok=True)
        with h5py.File(tmp_path / "h5" / f"{number}.h5", "w") as file:
            file["img"] = rng.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    for name in "ab":
        path = write_slide(tmp_path / "slides" / f"{name}.tif", rng.integers(0, 256, (100, 120, 3), dtype=np.uint8))
        with open_slide(path) as slide:
            made = Coordinates(name, (120, 100), np.array([[0, 0], [40, 9]]), geometry_at_level(slide, 0, 64, 0.5))
            write_coordinates(tmp_path / "coords" / f"{name}.h5", made, slide)
    (tmp_path / "slides.csv").write_text("slide\nslides/a.tif\nslides/b.tif\n")
    specs = [
        f"Tar:shards={tmp_path}/tar/*.tar",
        f"H5:root={tmp_path}/h5",
        f"Slides:manifest={tmp_path}/slides.csv:coords={tmp_path}/coords",
    ]
    (tmp_path / "mix.yaml").write_text("datasets:\n" + "".join(f"- {{spec: '{spec}', weight: 1}}\n" for spec in specs))
    return f"Mix:{tmp_path}/mix.yaml"


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def _open_files(worker: str) -> Counter[str]:
    """How often a process has each file open."""
    found: Counter[str] = Counter()
    for entry in Path(f"/proc/{worker}/fd").iterdir():
        try:
            found[os.readlink(entry)] += 1
        except FileNotFoundError:  # closed meanwhile
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_open_each_file_once_and_leak_none(mixture: str, tmp_path: Path, small_crops: CropsSection) -> None:
    before = _children()
    loader = make_loader(
        make_dataset(mixture),
        small_crops,
        IbotSection(),
        patch_size=8,
        global_batch_size=2,
        seed=0,
        num_workers=WORKERS,
    )
    batches = iter(loader)
    counts = []
    for per_worker in (10, 30):
        list(islice(batches, per_worker * WORKERS))
        workers = sorted(_children() - before)
        assert len(workers) == WORKERS
        files = [_open_files(worker) for worker in workers]
        for found in files:
            own = {name: times for name, times in found.items() if name.startswith(str(tmp_path))}
            assert own
            assert max(own.values()) == 1
        counts.append([sum(found.values()) for found in files])
    for first, later in zip(*counts, strict=True):
        assert later <= first + IN_FLIGHT
