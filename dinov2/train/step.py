"""One optimiser step: micro-batches forward and backward, clipping, the update, the teacher.

All that the host has to know of a step, on every process, comes in one small gathered tensor: losses and gradient norms
for the log, which of them are not finite and where, who has no more data, who was asked to stop. Reading it is the one
time in a step that the host waits for the device, and what it decides, it decides alike everywhere.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dinov2.distributed.env import gather_vectors
from dinov2.distributed.training_state import rng_state, set_rng_state
from dinov2.train.feed import BatchFeed
from dinov2.train.optim import apply_schedule
from dinov2.train.precision import Precision
from dinov2.train.schedules import StepValues
from dinov2.train.ssl_meta_arch import SSLMetaArch

SMALLEST_SCALE = 1.0  # a gradient that overflows float16 below it is no question of the scale any more


@dataclass(frozen=True)
class StepReport:
    """What all processes know of a step.

    `numbers` are means over the processes: the parts of the loss, the gradient norms before clipping; the seconds spent
    waiting for data are the longest, and the bad tiles the sum. `bad` has, for each part that is NaN or infinite, the
    value on each rank where it is. `overflow` tells that only float16 gradients were too large for the scale, which is
    halved. The parameters have changed if `applied`. `failed_ranks` have no more data, `stop_code` is the weightiest
    StopReason.
    """

    numbers: dict[str, float]
    bad: dict[str, dict[int, float]]
    overflow: bool
    applied: bool
    failed_ranks: list[int]
    stop_code: int


@dataclass
class TrainStep:
    """Takes optimiser steps; a callable of the micro-batches to come and the schedules' values.

    `objective` is `arch` or what wraps it; `accumulate` is the number of micro-batches, `clip_grad` the largest norm of
    the gradients of each of the student's modules (0: no clipping), `stop_code` tells whether this process was asked to
    stop.
    """

    arch: SSLMetaArch
    objective: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    scaler: GradScaler
    accumulate: int
    clip_grad: float
    device: torch.device
    stop_code: Callable[[], int] = int

    def __call__(self, feed: BatchFeed, values: StepValues) -> StepReport:
        """Take one step, unless a loss or a gradient is not finite or the data of a process have failed.

        A step that is not taken leaves everything as it was; one that overflows in float16 halves the scale.

        Raises:
            UserError: see `BatchFeed`.
        """
        before = self._traces()
        apply_schedule(self.optimizer, values)
        self.optimizer.zero_grad(set_to_none=True)
        feed.reset()
        sums: dict[str, Tensor] = {}
        for micro in range(self.accumulate):
            batch = feed.next().to(self.device, non_blocking=True)
            with self._synchronised(last=micro == self.accumulate - 1):
                with self.precision.autocast():
                    parts = self.objective(batch, values.teacher_temp)
                self.scaler.scale(parts["total_loss"] / self.accumulate).backward()
            for name, part in parts.items():
                sums[name] = sums.get(name, 0) + part.detach() / self.accumulate
        self.scaler.unscale_(self.optimizer)
        report = self._report(sums | self._clip(), feed)
        if report.applied:
            self.optimizer.step()
            self.arch.update_teacher(values.momentum)
        if report.applied or report.overflow:
            self.scaler.update()
        else:
            self._undo(before)
        return report

    def _traces(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return what a step changes before it is known whether it counts: the centres and the generators."""
        return [center.clone() for center in self._centers()], rng_state(self.device)

    def _undo(self, traces: tuple[list[Tensor], dict[str, Tensor]]) -> None:
        for center, value in zip(self._centers(), traces[0], strict=True):
            center.copy_(value)
        set_rng_state(traces[1])
        if self.scaler.is_enabled():
            self.scaler.update(self.scaler.get_scale())  # ends its step without changing it

    def _centers(self) -> list[Tensor]:
        return [] if self.arch.centers is None else list(self.arch.centers.buffers())

    def _clip(self) -> dict[str, Tensor]:
        """Clip the gradients of backbone and heads separately, as DINOv2 does; return their norms before."""
        limit = self.clip_grad or float("inf")
        norms = {}
        for name, module in self.arch.student.items():
            norm = nn.utils.clip_grad_norm_(module.parameters(), limit)
            norms[f"grad_norm_{name}"] = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return norms

    def _report(self, tensors: dict[str, Tensor], feed: BatchFeed) -> StepReport:
        if self.scaler.is_enabled():  # asked for its scale, the scaler would wait for the device
            tensors = tensors | {"loss_scale": self.scaler.scale(tensors["total_loss"].new_ones(()))}
        own = torch.stack([tensor.double() for tensor in tensors.values()])
        flags = [float(feed.failure is not None), float(self.stop_code()), feed.seconds_waited, float(len(feed.bad))]
        vector = torch.cat([own, torch.tensor(flags, dtype=own.dtype).to(own.device, non_blocking=True)])
        rows = gather_vectors(vector).tolist()  # processes x values
        failed = [rank for rank, row in enumerate(rows) if row[-4]]
        columns = dict(zip(tensors, zip(*rows, strict=True), strict=False))
        bad = {
            name: {rank: value for rank, value in enumerate(column) if not math.isfinite(value)}
            for name, column in columns.items()
        }
        bad = {name: where for name, where in bad.items() if where}
        numbers = {name: sum(column) / len(column) for name, column in columns.items()}
        numbers["data_seconds"] = max(row[-2] for row in rows)
        numbers["bad_tiles"] = sum(row[-1] for row in rows)
        overflow = False
        if self.scaler.is_enabled():
            norms_only = all(name.startswith("grad_norm_") for name in bad)
            overflow = bool(bad) and norms_only and numbers["loss_scale"] > SMALLEST_SCALE
        return StepReport(
            numbers=numbers,
            bad={} if overflow else bad,
            overflow=overflow,
            applied=not bad and not failed,
            failed_ranks=failed,
            stop_code=int(max(row[-3] for row in rows)),
        )

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Let DDP average gradients only after the last micro-batch."""
        if isinstance(self.objective, DistributedDataParallel) and not last:
            return self.objective.no_sync()
        return nullcontext()
