"""Training in small, in the trainer's place: sharded, saved when asked to stop, resumed by the job that comes after.

Takes the arguments of `python -m dinov2.train`: `--config-file` holds the keys of `Plan`, `--output-dir` is where
`losses.jsonl` and the checkpoints lie.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
import yaml
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from dinov2.distributed.env import all_reduce_max, all_reduce_sum
from dinov2.distributed.launch import Launch, find_launch
from dinov2.distributed.process_group import process_group
from dinov2.train.interrupt import StopReason, StopRequest
from dinov2.train.requeue import job_deadline, requeue_if_slurm


@dataclass
class Plan:
    """What to do: steps and their least duration, how often to save, when to stop, and at which step rank 1 fails."""

    steps: int = 30
    step_seconds: float = 0.0
    save_every: int = 1000
    stop_before_minutes: float = 0.0
    fail_at: int = -1


def main(argv: Sequence[str]) -> int:
    """Train as the arguments say; return the exit code of the trainer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config-file", type=Path)
    parser.add_argument("--output-dir", type=Path)
    args = parser.parse_args(argv)
    plan = Plan(**(yaml.safe_load(args.config_file.read_text()) or {}))
    logging.basicConfig(level=logging.INFO)
    launch = find_launch(os.environ)
    with StopRequest() as stop, process_group(launch, "cpu", 2) as device:
        stop.stop_at(job_deadline(os.environ, plan.stop_before_minutes))
        reason = train(plan, args.output_dir, launch, stop, device)
        requeue_if_slurm(reason, launch.rank, os.environ)
    return reason.exit_code


def train(plan: Plan, folder: Path, launch: Launch, stop: StopRequest, device: torch.device) -> StopReason:
    """Take the steps that are left; return why they ended."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).to(device)
    if launch.world_size > 1:
        fully_shard(model, mesh=init_device_mesh("cpu", (launch.world_size,)))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    step, reason = resume(folder, model, optimizer), StopReason.NONE
    while step < plan.steps and reason == StopReason.NONE:
        loss = take_step(step, model, optimizer, launch)
        if launch.rank == 0:
            report = {"step": step, "loss": loss, "world": launch.world_size, "nodes": os.environ["SLURM_JOB_NODELIST"]}
            with open(folder / "losses.jsonl", "a") as file:
                file.write(json.dumps(report) + "\n")
        if step == plan.fail_at and launch.rank == 1:
            raise ArithmeticError("the loss became too small")
        step += 1
        time.sleep(plan.step_seconds)
        reason = StopReason(int(all_reduce_max(torch.tensor(stop.code()))))
        if step % plan.save_every == 0 or reason or step == plan.steps:
            save(folder, model, optimizer, step)
    return reason if step < plan.steps else StopReason.NONE


def take_step(step: int, model: nn.Module, optimizer: torch.optim.Optimizer, launch: Launch) -> float:
    """Fit a rank's part of the batch that belongs to `step`; return the loss over all ranks."""
    batch = torch.randn(8, 8, generator=torch.Generator().manual_seed(step))[launch.rank :: launch.world_size]
    loss = (model(batch) - batch.sum(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(all_reduce_sum(loss.detach().clone())) / launch.world_size


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write the checkpoint of `step`, all ranks together."""
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder / f"{step:04d}.partial")
    if int(os.environ["SLURM_PROCID"]) == 0:
        os.replace(folder / f"{step:04d}.partial", folder / f"{step:04d}")


def resume(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the newest checkpoint, if any; return its step."""
    saved = sorted(path for path in folder.glob("*") if path.name.isdigit())
    if not saved:
        return 0
    weights, moments = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=saved[-1])
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
    return int(saved[-1].name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
