"""KoLeo in several processes: each writes its losses and their gradients to `koleo<rank>.pt`."""

import os
from pathlib import Path

import torch

from dinov2.distributed.env import rank, world_size
from dinov2.distributed.launch import find_launch
from dinov2.distributed.process_group import process_group
from dinov2.loss import koleo_loss


def embeddings():
    """Twelve points (12, 5) of all processes, in float64."""
    return torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def main(folder: str) -> int:
    """Compute both forms over this process's part of the points."""
    with process_group(find_launch(os.environ), "cpu", 1.0):
        found = {}
        for distributed in (False, True):
            own = embeddings().chunk(world_size())[rank()].clone().requires_grad_()
            loss = koleo_loss(own, distributed=distributed)
            loss.backward()
            found[distributed] = (loss.detach(), own.grad)
        torch.save(found, Path(folder) / f"koleo{rank()}.pt")
    return 0
