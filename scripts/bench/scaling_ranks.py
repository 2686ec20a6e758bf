"""One process of `scaling.py`: trains on a fixed batch, and rank 0 prints its measurements as JSON."""

import json
import os
import sys
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from dinov2.data.collate import MultiCropBatch
from dinov2.distributed.env import all_reduce_max, barrier, rank
from dinov2.distributed.launch import find_launch
from dinov2.distributed.parallelize import parallelize
from dinov2.distributed.process_group import process_group
from dinov2.train.optim import apply_schedule, build_optimizer
from dinov2.train.schedules import Schedules
from dinov2.train.ssl_meta_arch import N_GLOBAL_CROPS, SSLMetaArch
from dinov2.utils.config import config_from_dict
from dinov2.utils.schema import SSLConfig

WARM_UP = 2
PROFILED = 3


@dataclass
class Training:
    """A student and a teacher, shared among the processes, and the batch that they see in every step."""

    config: SSLConfig
    batch: MultiCropBatch
    local_size: int

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.arch = SSLMetaArch(self.config).train()
        cpu = torch.device("cpu")
        self.objective = parallelize(self.arch, self.config.parallel, cpu, None, self.local_size)
        self.optimizer = build_optimizer(self.arch.student, self.config.optim)
        self.values = Schedules.from_config(self.config, self.config.train.global_batch_size or 1).at(0)

    def step(self) -> None:
        """Take one step: losses, gradients, clipping, AdamW, and the teacher's moving average."""
        apply_schedule(self.optimizer, self.values)
        self.optimizer.zero_grad(set_to_none=True)
        self.objective(self.batch, self.values.teacher_temp)["total_loss"].backward()
        for module in self.arch.student.values():
            nn.utils.clip_grad_norm_(module.parameters(), self.config.optim.clip_grad)
        self.optimizer.step()
        self.arch.update_teacher(self.values.momentum)


def make_batch(config: SSLConfig, images: int) -> MultiCropBatch:
    """Return a batch of noise, in which half of the global crops have three patches of ten masked."""
    torch.manual_seed(1 + rank())
    size, small = config.crops.global_crops_size, config.crops.local_crops_size
    patches = (size // config.student.patch_size) ** 2
    masked = torch.arange(patches) < max(1, round(0.3 * patches))
    masks = torch.zeros(N_GLOBAL_CROPS * images, patches, dtype=torch.bool)  # (2B, N)
    masks[::2] = masked
    indices = masks.flatten().nonzero().flatten()  # (M,)
    return MultiCropBatch(
        global_crops=torch.randn(N_GLOBAL_CROPS * images, 3, size, size),
        local_crops=torch.randn(config.crops.local_crops_number * images, 3, small, small),
        masks=masks,
        mask_indices=indices,
        mask_weights=torch.full((len(indices),), 1 / int(masked.sum())),
        step=0,
        positions=[],
        paths=[],
        bad=[],
    )


def step_seconds(training: Training, steps: int) -> float:
    """Return the mean seconds of a step, of the slowest process."""
    barrier()
    begin = time.perf_counter()
    for _ in range(steps):
        training.step()
    return float(all_reduce_max(torch.tensor((time.perf_counter() - begin) / steps, dtype=torch.float64)))


def communication_seconds(training: Training) -> float:
    """Return the seconds of a step in which this process has a collective under way, waiting for others included."""
    barrier()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(PROFILED):
            training.step()
    spans: list[tuple[float, float]] = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiled.events() or []
        if event.name.startswith("gloo:")
    )
    total, end = 0.0, float("-inf")
    for first, last in spans:  # in microseconds; they may overlap
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total / 1e6 / PROFILED


def main(case: str) -> None:
    """Measure a case: `config` (nested values), `images` of a process, `steps` of a sample, `repeats` and `threads`."""
    plan = json.loads(case)
    torch.set_num_threads(plan["threads"])
    launch = find_launch(os.environ)
    with process_group(launch, "cpu", 5.0):
        config = config_from_dict(plan["config"])
        training = Training(config, make_batch(config, plan["images"]), launch.local_world_size)
        for _ in range(WARM_UP):
            training.step()
        samples = [step_seconds(training, plan["steps"]) for _ in range(plan["repeats"])]
        waited = communication_seconds(training) if launch.world_size > 1 else 0.0
        if launch.rank == 0:
            print(json.dumps({"samples": samples, "communication": waited}))


if __name__ == "__main__":
    main(sys.argv[1])
