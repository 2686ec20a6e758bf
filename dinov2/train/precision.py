"""In which numbers a step computes: the dtype of autocast and FSDP, and the scaler that float16 needs."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.amp import GradScaler

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """The dtype of the layers that autocast lowers; parameters, losses and scans stay in float32."""

    dtype: torch.dtype
    device_type: str

    @classmethod
    def from_name(cls, name: str, device: torch.device) -> "Precision":
        """Return `compute_precision.dtype` for a device; `auto` is bf16 on CUDA and fp32 on a CPU."""
        if name == "auto":
            name = "bf16" if device.type == "cuda" else "fp32"
        return cls(DTYPES[name], device.type)

    @property
    def lowered(self) -> torch.dtype | None:
        """The dtype, or None where it is the parameters' own."""
        return None if self.dtype == torch.float32 else self.dtype

    def autocast(self) -> AbstractContextManager[Any]:
        """A context for the forward pass."""
        return torch.autocast(self.device_type, self.lowered or torch.bfloat16, enabled=self.lowered is not None)

    def scaler(self) -> GradScaler:
        """A scaler of the loss, without effect but in float16, whose small gradients would vanish."""
        return GradScaler(self.device_type, enabled=self.dtype == torch.float16)

    def __str__(self) -> str:
        return str(self.dtype).removeprefix("torch.")
