"""A program for the launchers: all ranks add up their numbers, or one fails. `python ranks.py BEHAVIOUR [SECONDS]`."""

import os
import sys
import time

import torch
import torch.distributed as dist

from dinov2.distributed import process_group as groups
from dinov2.distributed.launch import find_launch


class StuckAtShutdown:
    """What a communication library does that waits for lost ranks while the interpreter ends."""

    def __del__(self) -> None:
        time.sleep(600)


def main(behaviour: str, timeout_seconds: float = 60.0) -> None:
    launch = find_launch(os.environ)
    with groups.process_group(launch, "cpu", timeout_seconds / 60) as device:
        total = torch.tensor(launch.rank + 1, device=device)
        if launch.world_size > 1:
            dist.all_reduce(total)
        # One write: print() may write its line's end apart, and the ranks share a pipe.
        os.write(sys.stdout.fileno(), f"{launch.source} rank {launch.rank} of {launch.world_size}: {total}\n".encode())
        if launch.rank == 1:
            if behaviour == "raise":
                raise ArithmeticError("boom")
            if behaviour == "sleep":
                time.sleep(600)
            if behaviour == "stick":
                groups.EXIT_SECONDS = 2.0
                globals()["stuck"] = StuckAtShutdown()
                raise ArithmeticError("boom")
        if behaviour in ("raise", "sleep", "stick"):
            dist.all_reduce(total)


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:]))
