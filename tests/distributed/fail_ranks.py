"""Runs in which one rank has a misfortune: `python fail_ranks.py CONFIG`, started as `train_ranks.py` is.

All scenarios run in one process group, one after the other; each rank prints what it saw of them as JSON lines.
"""

import errno
import fcntl
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from dinov2.data.errors import TooManyBadTilesError
from dinov2.distributed import checkpoint
from dinov2.distributed.env import rank
from dinov2.distributed.launch import find_launch
from dinov2.distributed.process_group import process_group
from dinov2.train.trainer import Trainer
from dinov2.utils.config import load_config


class PoisonedTrainer(Trainer):
    """Rank 1 gets a NaN in its images at some steps."""

    poisoned: tuple[int, ...] = ()

    def _batches(self, start):
        for step, batch in enumerate(super()._batches(start), start):
            if step in self.poisoned and rank() == 1:
                batch = replace(batch, global_crops=batch.global_crops * float("nan"))
            yield batch


class HungryTrainer(Trainer):
    """Rank 1 runs out of data at the first micro-batch of step 3."""

    def _batches(self, start):
        for number, batch in enumerate(super()._batches(start), start * self.plan.accumulate):
            if number == 3 * self.plan.accumulate and rank() == 1:
                raise TooManyBadTilesError("all tiles of rank 1 are gone")
            yield batch


def full_disk_on_rank_1(whole):
    """The second save fails there."""
    calls = []

    def save(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2 and rank() == 1:
            kwargs["planner"] = FullDiskPlanner()
        return whole(*args, **kwargs)

    return save


def damage_newest_of_rank_1(folder):
    """Copy the run `skipped` to `damaged`, with another byte amid what rank 1 has saved last."""
    shutil.copytree(folder / "skipped", folder / "damaged", symlinks=True)
    with open(folder / "damaged" / "checkpoints" / "6" / "__1_0.distcp", "r+b") as file:
        content = file.read()
        file.seek(len(content) // 2)
        file.write(bytes([content[len(content) // 2] ^ 1]))


class FullDiskPlanner(DefaultSavePlanner):
    """Has nowhere to put the data."""

    def resolve_data(self, write_item):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def main(config_file: str) -> int:
    torch.set_num_threads(1)
    launch = find_launch(os.environ)
    with process_group(launch, "cpu", 2.0) as device:

        def run(kind, name, steps=(), **changes):
            config = load_config(config_file, [f"{key}={value}" for key, value in changes.items()])
            trainer = kind(config, Path(config.train.output_dir) / name, False, device, launch.local_world_size)
            trainer.poisoned = steps
            try:
                code = trainer.run()
                outcome = {"code": code}
            except Exception as error:
                outcome = {"error": type(error).__name__, "text": str(error)}
            finite = all(
                bool(torch.isfinite(p.to_local() if hasattr(p, "to_local") else p).all())
                for p in trainer.arch.parameters()
            )
            # One write: print() may write its line's end apart, and the ranks share a pipe.
            line = json.dumps({"name": name, "rank": rank(), "finite": finite} | outcome) + "\n"
            os.write(sys.stdout.fileno(), line.encode())

        run(PoisonedTrainer, "skipped", (2,))
        run(PoisonedTrainer, "diverged", (2, 3), **{"train.max_skipped_steps": 1})
        run(HungryTrainer, "hungry", **{"optim.accumulate_steps": 2})
        checkpoint.save, whole = full_disk_on_rank_1(checkpoint.save), checkpoint.save
        run(Trainer, "full")
        checkpoint.save = whole
        if rank() == 0:
            damage_newest_of_rank_1(Path(load_config(config_file).train.output_dir))
        torch.distributed.barrier()
        run(Trainer, "damaged")
        run(Trainer, "half", **{"compute_precision.dtype": "fp16"})
        # The lock is rank 0's, and refuses all ranks.
        folder = Path(load_config(config_file).train.output_dir) / "locked"
        if rank() == 0:
            with run_lock_held(folder):
                torch.distributed.barrier()
                run(Trainer, "locked")
        else:
            torch.distributed.barrier()
            run(Trainer, "locked")
    return 0


def run_lock_held(folder):
    """Hold the lock of a folder as another program would."""
    folder.mkdir(parents=True)
    file = open(folder / ".lock", "w")  # noqa: SIM115
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
