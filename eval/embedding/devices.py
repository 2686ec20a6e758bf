"""The devices of an embedding job: one in this process, or a process for each of several."""

import subprocess
import sys
from collections.abc import Sequence

import torch

from eval.errors import EvalError
from eval.patching.slides import Shard

_WORST_FIRST = (1, 3, 0)


def resolve_devices(names: Sequence[str]) -> list[str]:
    """Return torch devices; `auto` is the GPU where there is one.

    Raises:
        EvalError: an unknown device, or a GPU that is not there.
    """
    found = []
    for name in names:
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        kind, _, number = name.partition(":")
        if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
            raise EvalError(f"--device {name}: it must be auto, cpu, cuda or cuda:N.")
        if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
            raise EvalError(
                f"--device {name}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices here. "
                "Use --device cpu or auto."
            )
        found.append(name)
    return found


def embed_on_several(devices: Sequence[str], shard: str | None, arguments: Sequence[str]) -> int:
    """Run the same command once a device, each on its part of the slides; return the worst exit code."""
    whole = Shard.parse(shard) if shard else Shard(0, 1)
    processes = []
    for number, device in enumerate(devices):
        part = f"{whole.index + whole.count * number}/{whole.count * len(devices)}"
        command = [sys.executable, "-m", "eval.embed", *arguments, "--device", device, "--shard", part]
        processes.append(subprocess.Popen(command))
    try:
        codes = [process.wait() for process in processes]
    except KeyboardInterrupt:  # it has reached them too
        for process in processes:
            process.wait()
        raise
    return next((code for code in codes if code not in _WORST_FIRST), None) or min(codes, key=_WORST_FIRST.index)
