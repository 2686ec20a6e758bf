"""The torch part shared by all network encoders: transform, batching to a device, and a hash of the weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from eval.encoders import Pooling
from eval.errors import EvalError


@dataclass(frozen=True)
class Transform:
    """Resize to a square of `input_size` px, scale to 0..1, subtract `mean`, divide by `std` (each per RGB channel)."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    input_size: int
    interpolation: str = "bicubic"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) uint8 -> (B, 3, S, S) float32, on the same device."""
        x = images.permute(0, 3, 1, 2).float() / 255  # (B, 3, H, W)
        if x.shape[-2:] != (self.input_size, self.input_size):
            # Bicubic weights overshoot; pixels outside 0..1 exist in no training image.
            x = F.interpolate(x, (self.input_size,) * 2, mode=self.interpolation, antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std


@dataclass
class TorchEncoder:
    """A network in eval mode with its transform; `tokens` maps (B, 3, S, S) to an embedding (B, D)."""

    name: str
    model: nn.Module
    transform: Transform
    tokens: Callable[[nn.Module, torch.Tensor], torch.Tensor]
    weights_hash: str
    pooling: str
    device: str = "cpu"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = self.model.eval().to(self.device)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Weights, transform and pooling, plus what the kind of encoder adds (architecture, library version)."""
        t = self.transform
        return {
            "weights_hash": self.weights_hash,
            "pooling": self.pooling,
            "mean": list(t.mean),
            "std": list(t.std),
            "input_size": t.input_size,
            "interpolation": t.interpolation,
            **self.extra,
        }

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, H, W, 3) uint8 RGB -> (B, D) float32, in fp32 arithmetic.

        Raises:
            EvalError: the patches are not square (resizing them would distort the tissue).
        """
        if images.shape[1] != images.shape[2]:
            raise EvalError(
                f"patches of {images.shape[1]} x {images.shape[2]} px: they must be square. Cut them square."
            )
        with torch.inference_mode():
            batch = self.transform(torch.from_numpy(images).to(self.device))  # (B, 3, S, S)
            return np.asarray(self.tokens(self.model, batch).float().cpu().numpy())  # (B, D)


def pool(cls: torch.Tensor | None, patches: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Combine the CLS token (B, D) and the patch tokens (B, N, D) to (B, D), or (B, 2 D) for `cls+mean`."""
    mean = patches.mean(dim=1)  # (B, D)
    if pooling == "mean":
        return mean
    if cls is None:
        raise EvalError(f"pooling {pooling!r}: the encoder has no CLS token. Use --pooling mean.")
    return cls if pooling == "cls" else torch.cat([cls, mean], dim=1)
