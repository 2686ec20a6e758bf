"""A program in the trainer's place, whose rank 1 fails in the third of many steps."""

import os
import sys

import torch

from dinov2.distributed.env import all_reduce_sum
from dinov2.distributed.launch import find_launch
from dinov2.distributed.process_group import process_group


def main() -> int:
    launch = find_launch(os.environ)
    with process_group(launch, "cpu", 2):
        for step in range(100):
            all_reduce_sum(torch.tensor(step))
            if (step, launch.rank) == (3, 1):
                raise ArithmeticError("the loss became too small")
    return 0


if __name__ == "__main__":
    sys.exit(main())
