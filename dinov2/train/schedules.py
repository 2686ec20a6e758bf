"""Schedules over training steps."""

import math
from dataclasses import dataclass

from dinov2.utils.schema import SSLConfig


@dataclass(frozen=True)
class CosineSchedule:
    """Linear from `start` to `base` over `warmup` steps, then half a cosine to `final` at `total`, then `final`."""

    base: float
    final: float
    total: int
    warmup: int = 0
    start: float = 0.0

    def __call__(self, step: int) -> float:
        """Return the value at a step, counted from 0."""
        if step >= self.total:
            return self.final
        if step < self.warmup:
            # Ends on `base` at the last warm-up step.
            return self.start + (self.base - self.start) * step / max(self.warmup - 1, 1)
        phase = (step - self.warmup) / (self.total - self.warmup)
        return self.final + 0.5 * (self.base - self.final) * (1 + math.cos(math.pi * phase))


@dataclass(frozen=True)
class StepValues:
    """What the schedules say of one step."""

    lr: float
    last_layer_lr: float
    weight_decay: float
    momentum: float
    teacher_temp: float

    def named(self) -> dict[str, float]:
        """Return the values under the names that DINOv2's logs have."""
        return {
            "lr": self.lr,
            "last_layer_lr": self.last_layer_lr,
            "wd": self.weight_decay,
            "mom": self.momentum,
            "teacher_temp": self.teacher_temp,
        }


@dataclass(frozen=True)
class Schedules:
    """All schedules of a run.

    As in DINOv2, lengths are given in epochs of `train.OFFICIAL_EPOCH_LENGTH` steps, which need not be a pass over the
    data: 493 steps of 1,536 images are one over the paper's 757,000 tiles. `optim.total_steps` gives the length of the
    whole run in steps instead; warm-ups stay in epochs.
    """

    lr: CosineSchedule
    weight_decay: CosineSchedule
    momentum: CosineSchedule
    teacher_temp: CosineSchedule
    frozen_last_layer_steps: int
    total_steps: int

    @classmethod
    def from_config(cls, config: SSLConfig, global_batch_size: int) -> "Schedules":
        """Derive the schedules; `global_batch_size` enters the learning rate by `optim.scaling_rule`."""
        optim, teacher, length = config.optim, config.teacher, config.train.OFFICIAL_EPOCH_LENGTH
        total = optim.total_steps or optim.epochs * length
        lr = scaled_lr(optim.base_lr, optim.scaling_rule, global_batch_size)
        warm_temp = teacher.warmup_teacher_temp_epochs * length
        return cls(
            lr=CosineSchedule(lr, optim.min_lr, total, optim.warmup_epochs * length, 0.0),
            weight_decay=CosineSchedule(optim.weight_decay, optim.weight_decay_end, total),
            momentum=CosineSchedule(teacher.momentum_teacher, teacher.final_momentum_teacher, total),
            teacher_temp=CosineSchedule(
                teacher.teacher_temp, teacher.teacher_temp, max(warm_temp, 1), warm_temp, teacher.warmup_teacher_temp
            ),
            frozen_last_layer_steps=optim.freeze_last_layer_epochs * length,
            total_steps=total,
        )

    def at(self, step: int) -> StepValues:
        """Return the values at a step, counted from 0."""
        lr = self.lr(step)
        return StepValues(
            lr=lr,
            last_layer_lr=0.0 if step < self.frozen_last_layer_steps else lr,
            weight_decay=self.weight_decay(step),
            momentum=self.momentum(step),
            teacher_temp=self.teacher_temp(step),
        )


def scaled_lr(base_lr: float, rule: str, global_batch_size: int) -> float:
    """Return the learning rate: base_lr * sqrt(batch / 1024) under `sqrt_wrt_1024`, base_lr under `none`."""
    return base_lr * math.sqrt(global_batch_size / 1024) if rule == "sqrt_wrt_1024" else base_lr
