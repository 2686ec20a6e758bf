"""What the listing of a data set costs a process: run by data_index.py in a process of its own, prints JSON.

`python index_worker.py KIND SOURCE TILES`: opens the listing as a training does when it starts, then asks for the paths
of so many tiles in shuffled order, in a forked worker. KIND `ours` maps the kept listing of the folder SOURCE; `list`
reads a text file of paths into a Python list and draws a permutation of it. KIND `loader` reads about so many tiles of
the data set SOURCE, such as Folder:root=TILES, through the loader of training with one worker.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch

from dinov2.data.datasets import Folder, make_dataset
from dinov2.data.loaders import make_loader
from dinov2.data.samplers import ShuffledStream
from dinov2.utils.schema import CropsSection, IbotSection


def open_ours(root: str) -> Callable[[int], str]:
    """Return the function from a position of the stream to a path."""
    dataset = Folder(root)
    stream = ShuffledStream(len(dataset), 0)
    return lambda position: dataset.path(stream.index_at(position))


def open_list(file: str) -> Callable[[int], str]:
    """Return the same from a list in memory."""
    paths = Path(file).read_text().splitlines()
    order = torch.randperm(len(paths))
    return lambda position: paths[order[position]]


def memory(process: str = "self") -> tuple[float, float]:
    """MiB of a process: written by it alone, and resident at all."""
    lines = [line.split() for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]]
    kib = {line[0]: int(line[1]) for line in lines}
    return kib["Private_Dirty:"] / 1024, kib["Rss:"] / 1024


def ask(find: Callable[[int], str], tiles: int, results: "SimpleQueue[dict[str, float]]") -> None:
    """Look paths up in a forked process, as a loader's worker does, and send what that took."""
    begin = time.perf_counter()
    for position in range(tiles):
        find(position)
    seconds = time.perf_counter() - begin
    private, resident = memory()
    results.put({"path_us": 1e6 * seconds / tiles, "worker_private_mib": private, "worker_resident_mib": resident})


def load(spec: str, tiles: int) -> dict[str, float]:
    """Return seconds to open a data set, its tiles, and the memory of a loader's worker that has read so many."""
    begin = time.perf_counter()
    dataset = make_dataset(spec)
    opened = time.perf_counter() - begin
    crops, batch = CropsSection(), 8
    loader = make_loader(
        dataset,
        crops,
        IbotSection(),
        patch_size=16,
        global_batch_size=batch,
        seed=0,
        num_workers=1,
        max_bad_fraction=1.0,
        augment="device",
    )
    before = _children()
    batches = loader._loaded()  # as the worker hands them over: crops are made elsewhere
    for _ in range(max(tiles // batch, 1)):
        next(batches)
    (worker,) = _children() - before
    private, resident = memory(worker)
    return {"start_s": opened, "tiles": len(dataset), "worker_private_mib": private, "worker_resident_mib": resident}


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def main(kind: str, source: str, tiles: int) -> dict[str, float]:
    """Return seconds to open, microseconds a path, and a worker's memory."""
    begin = time.perf_counter()
    find = {"ours": open_ours, "list": open_list}[kind](source)
    find(0)
    opened = time.perf_counter() - begin
    context = get_context("fork")
    results: SimpleQueue[dict[str, float]] = context.SimpleQueue()
    worker = context.Process(target=ask, args=(find, tiles, results))
    worker.start()
    asked = results.get()
    worker.join()
    return {"start_s": opened, **asked}


if __name__ == "__main__":
    what, where, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    print(json.dumps(load(where, number) if what == "loader" else main(what, where, number)))
