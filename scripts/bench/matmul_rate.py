"""What the machine's matrix products reach, as the yardstick of everything else."""

import functools
from collections.abc import Callable

import torch
from timing import interleave

from dinov2.ops.dispatch import usable_backends
from dinov2.ops.linear import linear

SIZES = {"cpu": (1024, 2048, 3072), "cuda": (4096, 8192)}


def matmul_rate(device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...] | None = None) -> float:
    """Return the best operations a second (a multiply-add counts two) of a few square products, by any of our ways."""
    best = 0.0
    for size in sizes or SIZES[device.type]:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        products: dict[str, Callable[[], object]] = {"matmul": functools.partial(torch.mm, a, b, out=out)}
        if "onednn" in usable_backends("linear", device.type, dtype):
            products["onednn"] = functools.partial(linear, a, b, backend="onednn")
        for timing in interleave(products, device, repeats=5, seconds=5.0).values():
            best = max(best, 2 * size**3 / timing.minimum)
    return best
