"""Training runs whose first step is watched for the dtypes in which modules hold their parameters and compute."""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn

from dinov2.distributed.env import rank
from dinov2.distributed.launch import find_launch
from dinov2.distributed.parallelize import float32_modules
from dinov2.distributed.process_group import process_group
from dinov2.train.trainer import Trainer
from dinov2.utils.config import load_config

sys.path.append(str(Path(__file__).parents[1] / "models"))
from precision_probe import watched


class WatchedTrainer(Trainer):
    """Looks into its first step."""

    def run(self):
        exact = {name: module for name, module in self.arch.named_modules() if module in float32_modules(self.arch)}
        kinds = {"exact": exact, "linear": {n: m for n, m in self.arch.named_modules() if isinstance(m, nn.Linear)}}
        step, taken = self.step, []

        def watched_step(*args):
            if taken:
                return step(*args)
            taken.append(True)
            with watched(kinds["exact"] | kinds["linear"]) as seen:
                report = step(*args)
            self.seen = {
                kind: {
                    "calls": min(seen[name].calls for name in modules),
                    "parameters": sorted({str(d) for name in modules for d in seen[name].parameters.values()}),
                    "computed": sorted({str(d) for name in modules for _, d in seen[name].computed}),
                }
                for kind, modules in kinds.items()
            }
            return report

        self.step = watched_step
        return super().run()


def main(*config_files: str) -> int:
    """Train as each configuration says, and write what rank 1, or the only one, saw into the run folder."""
    torch.set_num_threads(1)
    launch = find_launch(os.environ)
    with process_group(launch, "cpu", 2.0) as device:
        for config_file in config_files:
            config = load_config(config_file, [])
            folder = Path(config.train.output_dir)
            trainer = WatchedTrainer(config, folder, False, device, launch.local_world_size)
            if code := trainer.run():
                return code
            if rank() == launch.world_size - 1:
                gradients = sorted({str(p.grad.dtype) for p in trainer.arch.student.parameters() if p.grad is not None})
                (folder / "seen.json").write_text(json.dumps(trainer.seen | {"gradients": gradients}))
    return 0
