"""How the global batch is divided among processes and accumulation steps."""

from dataclasses import dataclass

from dinov2.utils.errors import ConfigError
from dinov2.utils.schema import OptimSection, TrainSection


@dataclass(frozen=True)
class BatchPlan:
    """`global_batch = world_size * accumulate * micro_batch` images a step."""

    global_batch: int
    micro_batch: int
    accumulate: int
    world_size: int

    @classmethod
    def from_config(cls, train: TrainSection, optim: OptimSection, world_size: int) -> "BatchPlan":
        """Divide `train.global_batch_size` among processes, and each share into micro-batches.

        Without a global batch it is what the processes take: `batch_size_per_gpu` times `optim.accumulate_steps` each.
        Without `accumulate_steps`, a share larger than `batch_size_per_gpu` is cut into as few equal parts as possible.

        Raises:
            ConfigError: a division leaves a rest (with the nearest value that divides), or a part is larger than
                `batch_size_per_gpu`.
        """
        largest, steps = train.batch_size_per_gpu, optim.accumulate_steps
        total = train.global_batch_size or largest * world_size * (steps or 1)
        unit = world_size * (steps or 1)
        if total % unit:
            near = max(round(total / unit), 1) * unit
            by = f"{world_size} processes" + (f" of {steps} micro-batches (optim.accumulate_steps)" if steps else "")
            raise ConfigError(f"train.global_batch_size = {total}: not divisible by {by}; the nearest is {near}")
        share = total // world_size
        accumulate = steps or -(-share // largest)
        if share % accumulate:
            near = max(d for d in range(1, largest + 1) if share % d == 0)
            raise ConfigError(
                f"train.batch_size_per_gpu = {largest}: does not divide this process's {share} images a step into "
                f"equal parts; the nearest smaller value is {near}"
            )
        if share // accumulate > largest:
            raise ConfigError(
                f"optim.accumulate_steps = {steps}: leaves {share // accumulate} images a micro-batch, more than "
                f"train.batch_size_per_gpu = {largest}; raise one of the two, or leave accumulate_steps null"
            )
        return cls(total, share // accumulate, accumulate, world_size)
