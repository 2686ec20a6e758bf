"""Which tile comes when. The stream is infinite and global: position p is the same tile on any number of processes."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dinov2.data.seeding import keyed_generator


class ShuffledStream:
    """The tiles of a data set, shuffled anew for each epoch, as an infinite sequence over positions 0, 1, 2, ...

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
        self._order: Tensor = torch.empty(0, dtype=torch.int64)

    def index_at(self, position: int) -> int:
        """Tile at a position (at least 0): element `position % n` of the permutation of epoch `position // n`."""
        epoch, place = divmod(position, self.n)
        if epoch != self._epoch:
            generator = keyed_generator(self.seed, "order", epoch)
            self._order = torch.randperm(self.n, generator=generator)  # (n,)
            self._epoch = epoch
        return int(self._order[place])


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
