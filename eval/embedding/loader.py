"""Patches of many slides, read in worker processes ahead of the encoder, batch by batch and slide by slide."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
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

_AHEAD = 4  # batches that each worker reads in advance


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
    """Patches `start` to `stop` of a source's reading order."""

    source: int
    start: int
    stop: int


class _Batches(Dataset[Batch]):
    def __init__(self, sources: Sequence[PatchSource], items: Sequence[_Item], cache_dir: Path | None) -> None:
        self.sources = sources
        self.items = items
        self.cache_dir = cache_dir
        self._slides = OpenSlides(limit=2)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Batch:
        item = self.items[number]
        source = self.sources[item.source]
        indices, last = source.order[item.start : item.stop], item.stop == len(source)
        try:
            images = torch.from_numpy(read_patches(source, indices, self._slides, self.cache_dir))
            if get_worker_info() is not None:
                _share(images)
        except Exception as error:  # told to the parent, for which the other slides go on
            return Batch(item.source, indices, None, last, str(error) or type(error).__name__)
        return Batch(item.source, indices, images, last)


def load_batches(
    sources: Sequence[PatchSource],
    batch_size: int,
    workers: int,
    cache_dir: Path | None = None,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """Yield the batches of all sources in order; batches do not cross slides.

    When a reading process dies (for lack of memory, say), the slide that was due is read once more by itself, since the
    process may have been ahead of it. If that fails too, the slide is given up, and reading goes on with the next.

    Args:
        sources: of at least one patch each.
        batch_size: patches in a batch; the last of a slide is smaller.
        workers: reading processes; 0 reads in this one.
        cache_dir: local folder to which slides are copied before they are read.
        pin_memory: return page-locked memory, from which copies to a GPU are faster.
    """
    items = [
        _Item(number, start, min(start + batch_size, len(source)))
        for number, source in enumerate(sources)
        for start in range(0, len(source), batch_size)
    ]
    alone = False
    with deaths_polled() as poll:
        while items:
            due = items[0].source
            chunk = [item for item in items if item.source == due] if alone else items
            loader = DataLoader(
                _Batches(sources, chunk, cache_dir),
                batch_size=None,
                num_workers=workers,
                worker_init_fn=init_worker,
                prefetch_factor=_AHEAD if workers else None,
                pin_memory=pin_memory,
                generator=torch.Generator(),
            )
            done, lost = 0, ""
            for batch in _until_lost(loader, poll):
                if isinstance(batch, str):
                    lost = batch
                    continue
                done += 1
                yield batch
            items = items[done:]
            if lost and alone:
                reason = f"a reading process died: {lost} Fewer --workers need less memory"
                yield Batch(due, sources[due].order[items[0].start :], None, True, reason)
                items = [item for item in items if item.source != due]
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


def default_workers() -> int:
    """Return a number of reading processes that leaves a core to the encoder."""
    return max(1, min(8, len(os.sched_getaffinity(0)) - 1))
