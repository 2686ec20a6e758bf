"""Timing several calls in turn, so that whatever else the machine does hits all of them alike."""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from tqdm import tqdm

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


Item = TypeVar("Item")


def shown(items: Iterable[Item], label: str) -> Iterable[Item]:
    """Return the items with a progress bar on stderr, on a terminal only, which is gone at the end."""
    return tqdm(items, desc=label, leave=False, disable=None)


def interleave(
    calls: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, seconds: float, label: str = "timing"
) -> dict[str, Timing]:
    """Time `calls` in rounds, one sample of each a round: a b c a b c ..., after a warm-up of each.

    Args:
        calls: what to time, by name.
        device: CUDA is timed by events on its stream, anything else by the wall clock.
        repeats: rounds.
        seconds: a call whose samples took longer than this together sits out the remaining rounds.
        label: what the progress bar, which moves between samples, says before the call's name.
    """
    inner: dict[str, int] = {}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    total = len(calls) * (1 + repeats)
    with tqdm(total=total, desc=label, unit="sample", leave=False, disable=None) as bar:
        for name, call in calls.items():
            bar.set_postfix_str(f"warm-up of {name}")
            once = _sample(call, 1, device)
            if once < 1.0:  # the first call also loads, compiles and allocates
                once = _sample(call, 1, device)
            inner[name] = max(1, min(1000, math.ceil(SAMPLE_SECONDS / max(once, 1e-6))))
            bar.update()
        for name, call in itertools.chain.from_iterable(calls.items() for _ in range(repeats)):
            if not samples[name] or spent[name] < seconds:
                bar.set_postfix_str(name)
                samples[name].append(_sample(call, inner[name], device))
                spent[name] += samples[name][-1] * inner[name]
            bar.update()
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
