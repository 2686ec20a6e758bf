"""Peak memory of a call beyond what was there before it.

On a CPU every call is measured in a process of its own: what earlier calls left with the allocator would hide what this
one needs. There the kernel's high-water mark of resident memory counts, reset just before the call. On CUDA the
caching allocator's own count is exact, and no process is needed.

As a program, `python peak_memory.py MODULE CASE` (CASE in JSON) prints the bytes for `MODULE.memory_case(CASE)`, which
returns a small call that loads libraries and the call to measure.
"""

import ctypes
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MIB = 1024**2


def extra_bytes_cuda(call: Callable[[], object]) -> int:
    """Return the bytes that PyTorch's CUDA allocator held at most during `call` beyond those before it."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def extra_bytes_cpu(module: str, case: dict[str, Any], threads: int) -> int:
    """Return the resident bytes that `module.memory_case(case)` takes at most, measured in a fresh process.

    Raises:
        RuntimeError: the process failed (its last words are in the message).
    """
    environment = os.environ | {
        # Freed blocks go back to the system at once, so that resident memory is memory in use.
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": str(threads),
    }
    command = [sys.executable, str(Path(__file__).resolve()), module, json.dumps(case)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"measuring the memory of {module} {case} failed: {result.stderr.strip()[-500:]}")
    return int(result.stdout.split()[-1])


def extra_bytes_here(warm_up: Callable[[], object], call: Callable[[], object]) -> int:
    """Return the resident bytes that `call` takes in this process beyond those after `warm_up` (Linux)."""
    warm_up()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew from what is resident now
    before = _resident("VmRSS")
    call()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    print(extra_bytes_here(*importlib.import_module(sys.argv[1]).memory_case(json.loads(sys.argv[2]))))
