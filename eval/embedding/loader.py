"""Patches of many slides, read ahead of the encoder in a thread or in processes, batch by batch and slide by slide."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dinov2.data.workers import deaths_polled, init_worker, lost_worker
from dinov2.slides.handles import OpenSlides
from eval.embedding.sources import PatchSource, read_patches
from eval.errors import EvalError
from eval.prefetch import prefetch

_AHEAD = 4  # batches that the thread, or each process, reads in advance


@dataclass(frozen=True)
class Batch:
    """Patches of one slide, or why they could not be read.

    Attributes:
        source: number of the slide.
        indices: (B,) which of its patches.
        images: (B, P, P, 3) uint8; None where reading failed.
        last: whether these are the slide's last.
        error: why `images` is None.
    """

    source: int
    indices: NDArray[np.int64]
    images: torch.Tensor | None
    last: bool
    error: str = ""

    def pin_memory(self) -> "Batch":
        """Return the batch with its images in page-locked memory, for which the DataLoader asks."""
        return self if self.images is None else replace(self, images=self.images.pin_memory())


@dataclass(frozen=True)
class _Item:
    """A batch to read: number of the slide, its patches, and whether they are the slide's last."""

    source: int
    part: PatchSource
    last: bool


def load_batches(
    sources: Iterable[tuple[int, PatchSource]],
    batch_size: int,
    workers: int,
    cache_dir: Path | None = None,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """Yield the batches of all sources in order; batches do not cross slides.

    Sources are asked for as reading gets on, ahead of the batches: by the reading thread where there are no processes.
    There the thread leaves the cores to the encoder while it waits, and what it calls (decoding, copying) runs beside
    Python. Processes are for encoders that are faster than one core reads.

    When a reading process dies (for lack of memory, say), the slide that was due is read once more by itself, since the
    process may have been ahead of it. If that fails too, the slide is given up, and reading goes on with the next.

    Args:
        sources: number and patches, at least one, of each slide.
        batch_size: patches in a batch; the last of a slide is smaller.
        workers: reading processes; 0 reads in a thread of this one.
        cache_dir: local folder to which slides are copied before they are read.
        pin_memory: return page-locked memory, from which copies to a GPU are faster.
    """
    items = (
        _Item(number, source.part(start, start + batch_size), start + batch_size >= len(source))
        for number, source in sources
        for start in range(0, len(source), batch_size)
    )
    if workers == 0:
        here = _read_here(items, cache_dir, pin_memory)
        with closing(here), closing(prefetch(here, _AHEAD)) as batches:
            yield from batches
    else:
        yield from _read_in_processes(_Line(items), workers, cache_dir, pin_memory)


class _Reader(Dataset[Batch]):
    """Reads items, in whichever thread or process it is."""

    def __init__(self, cache_dir: Path | None) -> None:
        self.cache_dir = cache_dir
        self.slides = OpenSlides(limit=2)

    def __getitem__(self, item: _Item) -> Batch:
        indices = item.part.order
        try:
            images = torch.from_numpy(read_patches(item.part, indices, self.slides, self.cache_dir))
            if get_worker_info() is not None:
                _share(images)
        except Exception as error:  # told to the parent, for which the other slides go on
            return Batch(item.source, indices, None, item.last, str(error) or type(error).__name__)
        return Batch(item.source, indices, images, item.last)


class _Line:
    """Items in order, which can be put back while their batches have not come."""

    def __init__(self, items: Iterator[_Item]) -> None:
        self._items = items
        self._next = deque[_Item]()
        self._drawn = deque[_Item]()

    def first(self) -> _Item | None:
        """The next item, which stays."""
        if not self._next:
            self._next.extend(itertools.islice(self._items, 1))
        return self._next[0] if self._next else None

    def draw(self, only: int | None) -> Iterator[_Item]:
        """Draw the items up to the end, or those of the slide `only`."""
        while (item := self.first()) is not None and only in (None, item.source):
            self._drawn.append(self._next.popleft())
            yield item

    def arrived(self) -> None:
        """The batch of the item drawn first has come."""
        self._drawn.popleft()

    def put_back(self) -> None:
        """Put back the items whose batches have not come."""
        self._next.extendleft(reversed(self._drawn))
        self._drawn.clear()

    def skip(self, source: int) -> None:
        """Leave out what follows of a slide."""
        while (item := self.first()) is not None and item.source == source:
            self._next.popleft()


def _read_here(items: Iterator[_Item], cache_dir: Path | None, pin_memory: bool) -> Generator[Batch, None, None]:
    reader = _Reader(cache_dir)
    try:
        for item in items:
            batch = reader[item]
            yield batch.pin_memory() if pin_memory else batch
    finally:
        reader.slides.close()


def _read_in_processes(
    line: _Line, workers: int, cache_dir: Path | None, pin_memory: bool
) -> Generator[Batch, None, None]:
    alone = False
    with deaths_polled() as poll:
        while (first := line.first()) is not None:
            loader = DataLoader(
                _Reader(cache_dir),
                batch_size=None,
                sampler=line.draw(first.source if alone else None),
                num_workers=workers,
                worker_init_fn=init_worker,
                prefetch_factor=_AHEAD,
                pin_memory=pin_memory,
                generator=torch.Generator(),
            )
            lost = ""
            for batch in _until_lost(loader, poll):
                if isinstance(batch, str):
                    lost = batch
                    continue
                line.arrived()
                yield batch
            line.put_back()
            if lost and alone:
                reason = f"a reading process died: {lost} Fewer --workers need less memory"
                yield Batch(first.source, np.empty(0, np.int64), None, True, reason)
                line.skip(first.source)
            alone = bool(lost) and not alone


def _until_lost(loader: DataLoader[Batch], poll: Callable[[], None]) -> Iterator[Batch | str]:
    """Yield a loader's batches and, where a reading process is lost, why, as the last."""
    lost = ""
    try:
        batches = iter(loader)
        poll()
        yield from batches
    except (RuntimeError, OSError, EOFError) as error:
        lost = lost_worker(error)
        if not lost:
            raise
    if lost:
        yield lost


def _share(images: torch.Tensor) -> None:
    """Move a batch to shared memory here, where a failure can be told; later, the parent would wait for ever.

    Raises:
        EvalError: there is not enough.
    """
    try:
        images.share_memory_()
    except RuntimeError as error:
        raise EvalError(
            f"a batch of {images.nbytes:,} bytes does not fit into shared memory: {error}. Use a smaller --batch-size "
            "or fewer --workers (--workers 0 needs none), or enlarge /dev/shm."
        ) from error


def default_workers(device: str) -> int:
    """Return a number of reading processes: none beside an encoder on the CPU, else one that leaves it a core."""
    return 0 if device == "cpu" else spare_cores()


def spare_cores() -> int:
    """Return the number of cores but one, at least 1 and at most 8."""
    return max(1, min(8, len(os.sched_getaffinity(0)) - 1))
