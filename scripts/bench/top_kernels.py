"""Where the time of a call goes: its kernels on CUDA, its operators on a CPU, the longest first."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def top_kernels(call: Callable[[], object], device: torch.device, count: int = 25) -> list[dict[str, Any]]:
    """Profile one call, after another to warm up; return `share` of all kernels' time, `ms`, `calls` and `kernel`.

    Times are those of a kernel or operator by itself, without what it calls. The last row sums up the others.
    """
    cuda = device.type == "cuda"
    call()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiled:
        call()
        if cuda:
            torch.cuda.synchronize()
    kind = "CUDA" if cuda else "CPU"
    seconds = {
        event.key: (1e-6 * (event.self_device_time_total if cuda else event.self_cpu_time_total), event.count)
        for event in profiled.key_averages()
        if event.device_type.name == kind and not event.is_user_annotation
    }
    order = sorted(seconds.items(), key=lambda item: -item[1][0])
    rows = [(name, *value) for name, value in order[:count]]
    if rest := order[count:]:
        rows.append((f"{len(rest)} others", sum(s for _, (s, _) in rest), sum(n for _, (_, n) in rest)))
    whole = sum(s for s, _ in seconds.values())
    return [{"share": s / whole, "ms": 1e3 * s, "calls": n, "kernel": name[:100]} for name, s, n in rows]
