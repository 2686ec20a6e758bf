"""Timing several calls in turn, so that whatever else the machine does hits all of them alike."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

SAMPLE_SECONDS = 0.02  # a sample repeats a quick call for at least so long


@dataclass(frozen=True)
class Timing:
    """Seconds for one call, one number a sample."""

    samples: tuple[float, ...]

    @property
    def minimum(self) -> float:
        """The fastest sample in seconds."""
        return min(self.samples)

    @property
    def median(self) -> float:
        """The median of the samples in seconds."""
        return statistics.median(self.samples)

    @property
    def columns(self) -> dict[str, float | int]:
        """The table's columns: `min_ms`, `median_ms`, `samples`."""
        return {"min_ms": 1e3 * self.minimum, "median_ms": 1e3 * self.median, "samples": len(self.samples)}


def interleave(
    calls: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, seconds: float
) -> dict[str, Timing]:
    """Time `calls` in rounds, one sample of each a round: a b c a b c ..., after a warm-up of each.

    Args:
        calls: what to time, by name.
        device: CUDA is timed by events on its stream, anything else by the wall clock.
        repeats: rounds.
        seconds: a call whose samples took longer than this together sits out the remaining rounds.
    """
    inner: dict[str, int] = {}
    for name, call in calls.items():
        once = _sample(call, 1, device)
        if once < 1.0:  # the first call also loads, compiles and allocates
            once = _sample(call, 1, device)
        inner[name] = max(1, min(1000, math.ceil(SAMPLE_SECONDS / max(once, 1e-6))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    for _ in range(repeats):
        for name, call in calls.items():
            if samples[name] and spent[name] >= seconds:
                continue
            samples[name].append(_sample(call, inner[name], device))
            spent[name] += samples[name][-1] * inner[name]
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def _sample(call: Callable[[], object], count: int, device: torch.device) -> float:
    """Return the mean seconds of `count` calls in a row."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(count):
            call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3 / count
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begin) / count
