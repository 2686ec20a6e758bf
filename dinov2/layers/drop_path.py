"""Stochastic depth (arXiv 1603.09382)."""

import torch
from torch import Tensor, nn

from dinov2.ops.packing import Shapes, select_tokens


class DropPath(nn.Module):
    """Drop the residual branch of whole samples with probability `p` in training, and rescale the kept ones."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, shapes: Shapes | None = None, places: Tensor | None = None) -> Tensor:
        """Return (B, ...) with some samples zeroed, or with `shapes` a pack (1, T, D) or its tokens at `places`."""
        if self.p == 0.0 or not self.training:
            return x
        if shapes is None:
            keep = x.new_empty(x.shape[0], *(1,) * (x.ndim - 1)).bernoulli_(1 - self.p)
        else:
            samples = x.new_empty(sum(count for count, _ in shapes)).bernoulli_(1 - self.p)
            per_batch = samples.split([count for count, _ in shapes])
            tokens = [drawn.repeat_interleave(length) for drawn, (_, length) in zip(per_batch, shapes, strict=True)]
            keep = select_tokens(torch.cat(tokens)[None, :, None], places)  # (1, T, 1)
        return x * keep / (1 - self.p)

    def extra_repr(self) -> str:
        """Show the probability when the module is printed."""
        return f"p={self.p}"
