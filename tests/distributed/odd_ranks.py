"""Training runs in which rank 1 finds something else than rank 0 before they have made a process group."""

import os

import torch

from dinov2.train import train


def main(misfortune: str, command: list[str]) -> int:
    """Run the training program where `misfortune` is so; return its exit code.

    Args:
        misfortune: "driver": rank 0 sees a CUDA device, rank 1 none; "devices": both see the same one; "file": rank 1
            does not see the configuration file.
        command: arguments of the program, the file second.
    """
    second = os.environ["RANK"] == "1"
    if misfortune == "file":
        command = [command[0], command[1] + second * ".elsewhere", *command[2:]]
    else:
        torch.cuda.is_available = lambda: misfortune == "devices" or not second
        torch.cuda.device_count = lambda: 1
        torch.cuda.set_device = lambda device: None
    return train.main(command)
