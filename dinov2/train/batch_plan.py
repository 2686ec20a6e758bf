"""How the global batch is divided among processes and accumulation steps."""

from dataclasses import dataclass

from dinov2.utils.errors import ConfigError
from dinov2.utils.schema import TrainSection


@dataclass(frozen=True)
class BatchPlan:
    """`global_batch = world_size * accumulate * micro_batch` images a step."""

    global_batch: int
    micro_batch: int
    accumulate: int
    world_size: int

    @classmethod
    def from_config(cls, train: TrainSection, world_size: int) -> "BatchPlan":
        """Divide `train.global_batch_size`; without one it is `batch_size_per_gpu` on every process.

        When a process's share exceeds `batch_size_per_gpu`, gradients are accumulated over equal micro-batches.

        Raises:
            ConfigError: the division leaves a rest (with the nearest batch that divides).
        """
        total = train.global_batch_size or train.batch_size_per_gpu * world_size
        if total % world_size:
            near = max(round(total / world_size), 1) * world_size
            raise ConfigError(
                f"train.global_batch_size = {total}: not divisible by {world_size} processes; the nearest is {near}"
            )
        share = total // world_size
        accumulate = -(-share // train.batch_size_per_gpu)
        if share % accumulate:
            near = max(d for d in range(1, train.batch_size_per_gpu + 1) if share % d == 0)
            raise ConfigError(
                f"train.batch_size_per_gpu = {train.batch_size_per_gpu}: does not divide this process's {share} images "
                f"a step into equal parts; the nearest smaller value is {near}"
            )
        return cls(total, share // accumulate, accumulate, world_size)
