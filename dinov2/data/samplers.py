"""Which tile comes when. The stream is infinite and global: position p is the same tile on any number of processes."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dinov2.data.datasets.base import Mixture, TileDataset
from dinov2.data.permutation import Permutation, permute, round_keys
from dinov2.data.seeding import derive_seed

MIX_BLOCK = 2**16  # samples in which a mixture's shares are kept


class Stream(Protocol):
    """An infinite sequence of tiles over positions 0, 1, 2, ..."""

    def index_at(self, position: int) -> int:
        """Tile at a position (at least 0)."""
        ...

    def indices_at(self, positions: ArrayLike) -> NDArray[np.int64]:
        """Tiles at positions (m,), the same as one by one."""
        ...


def make_stream(dataset: TileDataset, seed: int) -> Stream:
    """The stream of a data set: `MixedStream` for a mixture, `ShuffledStream` for any other.

    Args:
        dataset: of which only the sizes and weights matter.
        seed: `train.seed`.
    """
    if not isinstance(dataset, Mixture):
        return ShuffledStream(len(dataset), seed)
    streams = [make_stream(part, derive_seed(seed, "part", number)) for number, part in enumerate(dataset.parts)]
    return MixedStream(streams, [len(part) for part in dataset.parts], dataset.weights, seed)


class ShuffledStream:
    """The tiles of a data set, shuffled anew for each epoch; nothing is kept but the keys of one epoch.

    Args:
        n: number of tiles.
        seed: `train.seed`.

    Raises:
        ValueError: `n` is not positive.
    """

    def __init__(self, n: int, seed: int) -> None:
        if n < 1:
            raise ValueError(f"a stream needs at least one tile, not {n}")
        self.n = n
        self.seed = seed
        self._epoch = -1
        self._order = Permutation(n, 0)

    def index_at(self, position: int) -> int:
        """Tile at a position: element `position % n` of the permutation of epoch `position // n`."""
        epoch, place = divmod(position, self.n)
        return self._permutation(epoch)(place)

    def indices_at(self, positions: ArrayLike) -> NDArray[np.int64]:
        """Tiles at positions (m,)."""
        epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), self.n)  # (m,) each
        different, which = np.unique(epochs, return_inverse=True)
        keys = np.array([round_keys(self._key(int(epoch))) for epoch in different], dtype=np.uint64).T  # (rounds, e)
        return permute(self.n, places, keys[:, which]) if len(places) else places

    def _permutation(self, epoch: int) -> Permutation:
        if epoch != self._epoch:
            self._order = Permutation(self.n, self._key(epoch))
            self._epoch = epoch
        return self._order

    def _key(self, epoch: int) -> int:
        return derive_seed(self.seed, "order", epoch)


class MixedStream:
    """Several streams mixed by weight: each gives its share of every 65,536 samples, shuffled among them.

    Block b of 65,536 positions holds count[i] samples of stream i, its next ones: positions b * count[i] and on. So
    each stream is gone through in its own epochs, without a loss or a repetition, and every position is computed by
    itself.
    Counts are the weights rounded (largest remainders), at least 1.

    Args:
        streams: the parts.
        sizes: tiles of each; the mixture's indices count through the parts in order.
        weights: positive shares.
        seed: `train.seed`.

    Raises:
        ValueError: no stream, lists of different lengths, too many streams, or weights that are not positive.
    """

    def __init__(self, streams: Sequence[Stream], sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        if not 1 <= len(streams) == len(sizes) == len(weights) <= MIX_BLOCK:
            raise ValueError(f"{len(streams)} streams, {len(sizes)} sizes and {len(weights)} weights cannot be mixed")
        if not all(weight > 0 for weight in weights):
            raise ValueError(f"weights {list(weights)} must be positive")
        self.streams = list(streams)
        self.counts = apportion(weights, MIX_BLOCK)
        self._ends = np.cumsum(self.counts)
        self._starts = [0, *accumulate(sizes)][:-1]
        self._blocks = ShuffledStream(MIX_BLOCK, derive_seed(seed, "mixture"))

    def index_at(self, position: int) -> int:
        """Tile at a position."""
        slot = self._blocks.index_at(position)
        part = int(np.searchsorted(self._ends, slot, side="right"))
        place = position // MIX_BLOCK * self.counts[part] + slot - (int(self._ends[part]) - self.counts[part])
        return self._starts[part] + self.streams[part].index_at(place)

    def indices_at(self, positions: ArrayLike) -> NDArray[np.int64]:
        """Tiles at positions (m,)."""
        positions = np.asarray(positions, dtype=np.int64)
        slots = self._blocks.indices_at(positions)  # (m,)
        parts = np.searchsorted(self._ends, slots, side="right")  # (m,)
        tiles = np.empty_like(slots)
        for part, (count, end) in enumerate(zip(self.counts, self._ends, strict=True)):
            here = parts == part
            places = positions[here] // MIX_BLOCK * count + slots[here] - (end - count)
            tiles[here] = self._starts[part] + self.streams[part].indices_at(places)
        return tiles


def apportion(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers (at least 1, sum `total`) in proportion to positive weights, by largest remainders.

    Raises:
        ValueError: more weights than `total`.
    """
    if len(weights) > total:
        raise ValueError(f"{len(weights)} weights cannot share {total}")
    scale = max(weights)  # a sum of large weights may overflow
    shares = np.array([weight / scale for weight in weights])
    exact = shares / shares.sum() * total
    counts = np.floor(exact).astype(int)
    missing = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    for place in np.flatnonzero(counts == 0):
        counts[np.argmax(counts)] -= 1
        counts[place] = 1
    return [int(count) for count in counts]


class RankBatchSampler:
    """Positions of one rank's part of each global batch, for ever, in `accumulate` lists a step.

    Step s of rank r yields s * G + r * b + i for i in 0 .. b - 1, where G is the global batch and b = G // world_size,
    so the ranks together take every position once.

    Args:
        global_batch_size: G.
        rank: this process.
        world_size: number of processes.
        start_step: first step to yield.
        accumulate: equal micro-batches into which a rank's part is cut.

    Raises:
        ValueError: G is no positive multiple of `world_size`, b none of `accumulate`, or rank or step is out of range.
    """

    def __init__(
        self, global_batch_size: int, rank: int = 0, world_size: int = 1, start_step: int = 0, accumulate: int = 1
    ) -> None:
        if global_batch_size < 1 or world_size < 1 or global_batch_size % world_size:
            raise ValueError(
                f"train.global_batch_size {global_batch_size} must be a positive multiple of the {world_size} processes"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in 0 .. {world_size - 1}")
        if start_step < 0:
            raise ValueError(f"start_step {start_step} must not be negative")
        self.global_batch_size = global_batch_size
        self.rank = rank
        self.batch_size = global_batch_size // world_size
        self.start_step = start_step
        if accumulate < 1 or self.batch_size % accumulate:
            raise ValueError(f"{self.batch_size} samples a step cannot be cut into {accumulate} equal micro-batches")
        self.micro_batch_size = self.batch_size // accumulate

    def positions(self, step: int) -> list[int]:
        """The b positions of this rank at one step."""
        first = step * self.global_batch_size + self.rank * self.batch_size
        return list(range(first, first + self.batch_size))

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step
        while True:
            positions = self.positions(step)
            for start in range(0, self.batch_size, self.micro_batch_size):
                yield positions[start : start + self.micro_batch_size]
            step += 1
