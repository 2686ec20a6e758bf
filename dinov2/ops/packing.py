"""Batches of images of several sizes as one sequence of tokens.

A pack is (1, T, D): the tokens of the first batch (B, L, D), image after image, then those of the next. What works on
each token by itself (norms, linear layers) takes a pack as it is; what mixes the tokens of an image is told by the
shapes (B, L) of the batches which tokens belong together.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Shapes = tuple[tuple[int, int], ...]


def pack(batches: Sequence[Tensor]) -> Tensor:
    """Concatenate batches (B, L, ...) to a pack (1, T, ...)."""
    if len(batches) == 1:
        return batches[0].flatten(0, 1).unsqueeze(0)
    return torch.cat([batch.flatten(0, 1) for batch in batches]).unsqueeze(0)


def unpack(x: Tensor, shapes: Shapes) -> list[Tensor]:
    """Split a pack (1, T, ...) into its batches (B, L, ...), which are views."""
    # One split, and not a slice a batch: its gradient is one concatenation.
    parts = x.squeeze(0).split([count * length for count, length in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def each_batch(function: Callable[[Tensor], Tensor], x: Tensor, shapes: Shapes | None) -> Tensor:
    """Apply what mixes the tokens of an image to every batch of a pack, or to a batch (B, L, D) without `shapes`."""
    if shapes is None:
        return function(x)
    return pack([function(batch) for batch in unpack(x, shapes)])


def select_tokens(x: Tensor, places: Tensor | None) -> Tensor:
    """Return the tokens (1, K, D) at `places` (K,) of a pack (1, T, D), or all."""
    return x if places is None else x.index_select(1, places)
