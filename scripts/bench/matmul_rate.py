"""What the machine's matrix products reach, as the yardstick of everything else."""

import functools

import torch
from timing import interleave

SIZES = {"cpu": (1024, 2048, 3072), "cuda": (4096, 8192)}


def matmul_rate(device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...] | None = None) -> float:
    """Return the best operations a second (a multiply-add counts two) of a few square products of random matrices."""
    best = 0.0
    for size in sizes or SIZES[device.type]:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        product = functools.partial(torch.mm, a, b, out=out)
        timing = interleave({"matmul": product}, device, repeats=5, seconds=5.0)["matmul"]
        best = max(best, 2 * size**3 / timing.minimum)
    return best
