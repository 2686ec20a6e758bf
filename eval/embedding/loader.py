"""Patches of many slides, read in worker processes ahead of the encoder, batch by batch and slide by slide."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from dinov2.data.workers import init_worker
from dinov2.slides.handles import OpenSlides
from eval.embedding.sources import PatchSource, read_patches

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
        except Exception as error:  # told to the parent, for which the other slides go on
            return Batch(item.source, indices, None, last, str(error) or type(error).__name__)
        return Batch(item.source, indices, images, last)


def load_batches(
    sources: Sequence[PatchSource],
    batch_size: int,
    workers: int,
    cache_dir: Path | None = None,
    pin_memory: bool = False,
) -> Iterator[Batch]:
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
        done = 0
        try:
            for batch in loader:
                done += 1
                yield batch
            items, alone = items[done:], False
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            items = items[done:]
            if alone:
                reason = f"a reading process died: {str(error).splitlines()[0]} Fewer --workers need less memory"
                yield Batch(due, sources[due].order[items[0].start :], None, True, reason)
                items = [item for item in items if item.source != due]
            alone = not alone


def default_workers() -> int:
    """Return a number of reading processes that leaves a core to the encoder."""
    return max(1, min(8, len(os.sched_getaffinity(0)) - 1))
