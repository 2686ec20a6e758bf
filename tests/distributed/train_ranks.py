"""Training runs in float64, for processes of a test: rank 0 writes `final.pt` into each run folder."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from dinov2.data import samplers
from dinov2.distributed.env import rank
from dinov2.distributed.launch import find_launch
from dinov2.distributed.process_group import process_group
from dinov2.distributed.training_state import full_state_dict
from dinov2.train.trainer import Trainer
from dinov2.utils.config import load_config


class DoubleTrainer(Trainer):
    """Everything in float64, so that only a wrong sum can tell the number of processes."""

    def _make_arch(self):
        return super()._make_arch().double()

    def _batches(self, start):
        return map(_double, super()._batches(start))


def _double(batch):
    return replace(
        batch,
        global_crops=batch.global_crops.double(),
        local_crops=batch.local_crops.double(),
        mask_weights=batch.mask_weights.double(),
    )


def like_two(*config_files: str) -> int:
    """Train in one process whose two micro-batches a step hold what those of two processes hold together."""
    whole = samplers.RankBatchSampler.positions

    def positions(self, step):
        """Return the first micro-batch of the one process, that of the other, then their second ones."""
        given = whole(self, step)
        size = len(given) // 4
        return [given[start + i] for start in (0, 2 * size, size, 3 * size) for i in range(size)]

    samplers.RankBatchSampler.positions = positions
    return main(*config_files)


def main(*config_files: str) -> int:
    """Train as each configuration says, and return the exit code."""
    torch.set_num_threads(1)
    launch = find_launch(os.environ)
    with process_group(launch, "cpu", 2.0) as device:
        for config_file in config_files:
            config = load_config(config_file, [])
            folder = Path(config.train.output_dir)
            trainer = DoubleTrainer(config, folder, False, device, launch.local_world_size)
            if code := trainer.run():
                return code
            state = full_state_dict(trainer.arch)
            if rank() == 0:
                torch.save(state, folder / "final.pt")
    return 0
