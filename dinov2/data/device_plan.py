"""What to do to the crops of a batch, drawn by a worker and written down as tensors for the device.

A plan is a short program: boxes and flips of all crops, then steps, each one operation on some of the crops with a
value for each. The host knows how many crops a step has, so the device never has to be asked.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from dinov2.data.crop_params import CropParams, JitterOp

Operation = Literal["transpose", "stain", JitterOp, "grayscale", "blur", "solarize"]
Entry = tuple[int, tuple[float, ...]]  # a crop and its values

JITTER: tuple[JitterOp, ...] = ("brightness", "contrast", "saturation", "hue")
VALUES = 6  # the most that an operation takes for one crop: gains and biases of three stains


@dataclass(frozen=True)
class CropPlan:
    """Plan of the n crops of one size of each of B tiles; crop b * n + c is crop c of tile b."""

    boxes: Tensor  # (B, n, 4) float32: top, left, height, width in px
    flips: Tensor  # (B, n, 2) bool: upside down, left to right
    longest: int  # side of a box, px
    steps: tuple[tuple[Operation, int], ...]  # operation and number of its crops, in the order of application
    rows: Tensor  # (T,) int64: the crops of the first step, of the second, ...
    values: Tensor  # (T, VALUES) float32: what the operation takes for each, then zeros

    def map(self, function: Callable[[Tensor], Tensor]) -> "CropPlan":
        """Return the plan with a function applied to its tensors, such as a copy to a device."""
        return replace(
            self,
            boxes=function(self.boxes),
            flips=function(self.flips),
            rows=function(self.rows),
            values=function(self.values),
        )

    def __iter__(self) -> Iterator[tuple[Operation, Tensor, Tensor]]:
        """Yield operation, crops (k,) and values (k, VALUES) of each step."""
        ends = accumulate(count for _, count in self.steps)
        for (operation, count), end in zip(self.steps, ends, strict=True):
            yield operation, self.rows[end - count : end], self.values[end - count : end]


def make_plan(params: Sequence[Sequence[CropParams]]) -> CropPlan:
    """Write down the crops of B tiles, n each."""
    flat = [crop for tile in params for crop in tile]
    steps = [(operation, entries) for operation, entries in _steps(flat) if entries]
    entries = [entry for _, members in steps for entry in members]
    padded = [values + (0.0,) * (VALUES - len(values)) for _, values in entries]
    shape = (len(params), len(params[0]))
    return CropPlan(
        boxes=torch.tensor([(p.top, p.left, p.height, p.width) for p in flat], dtype=torch.float32).view(*shape, 4),
        flips=torch.tensor([_flips(p) for p in flat], dtype=torch.bool).view(*shape, 2),
        longest=max((max(p.height, p.width) for p in flat), default=0),
        steps=tuple((operation, len(members)) for operation, members in steps),
        rows=torch.tensor([row for row, _ in entries], dtype=torch.int64),
        values=torch.tensor(padded, dtype=torch.float32).view(-1, VALUES),
    )


def _flips(params: CropParams) -> tuple[bool, bool]:
    """Flips before a transposition that together make the crop's flips and then its quarter turns."""
    turns = params.quarter_turns
    return params.vertical_flip != (turns in (2, 3)), params.flip != (turns in (1, 2))


def _steps(crops: Sequence[CropParams]) -> Iterator[tuple[Operation, list[Entry]]]:
    yield "transpose", [(row, ()) for row, p in enumerate(crops) if p.quarter_turns % 2]
    yield "stain", [(row, p.stain.gain + p.stain.bias) for row, p in enumerate(crops) if p.stain]
    for place in range(len(JITTER)):  # each crop has its own order
        at_place = [(row, *p.jitter[place]) for row, p in enumerate(crops) if place < len(p.jitter)]
        for operation in JITTER:
            yield operation, [(row, (factor,)) for row, name, factor in at_place if name == operation]
    yield "grayscale", [(row, ()) for row, p in enumerate(crops) if p.grayscale]
    yield "blur", [(row, (p.blur_sigma,)) for row, p in enumerate(crops) if p.blur_sigma is not None]
    yield "solarize", [(row, ()) for row, p in enumerate(crops) if p.solarize]
