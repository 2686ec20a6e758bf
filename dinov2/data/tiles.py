"""Decoded tiles: one recompressed, and many of any sizes in one piece of memory."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image


def recompress(tile: Tensor, quality: int) -> Tensor:
    """Return what JPEG of a quality (1 .. 100) makes of a uint8 tile (3, H, W)."""
    buffer = io.BytesIO()
    to_pil_image(tile).save(buffer, "JPEG", quality=quality)
    return pil_to_tensor(Image.open(buffer))


@dataclass(frozen=True)
class PackedTiles:
    """B uint8 tiles of any sizes, one after the other."""

    pixels: Tensor  # (P,) uint8: each tile (3, H, W), contiguous
    sizes: tuple[tuple[int, int], ...]  # (H, W) of each

    def map(self, function: Callable[[Tensor], Tensor]) -> "PackedTiles":
        """Return the tiles with a function applied to the pixels, such as a copy to a device."""
        return PackedTiles(function(self.pixels), self.sizes)

    def groups(self, limit: int) -> Iterator[tuple[list[int], Tensor]]:
        """Yield tiles of equal size together: their numbers, and uint8 (k, 3, H, W) of up to `limit` values."""
        values = [3 * math.prod(size) for size in self.sizes]
        if len(set(self.sizes)) == 1 and sum(values) <= limit:
            yield list(range(len(self.sizes))), self.pixels.view(-1, 3, *self.sizes[0])
            return
        pieces = self.pixels.split(values)
        for size in dict.fromkeys(self.sizes):
            members = [number for number, other in enumerate(self.sizes) if other == size]
            together = max(limit // (3 * math.prod(size)), 1)
            for start in range(0, len(members), together):
                some = members[start : start + together]
                yield some, torch.stack([pieces[number].view(3, *size) for number in some])


def pack_tiles(tiles: Sequence[Tensor]) -> PackedTiles:
    """Put uint8 tiles (3, H, W) one after the other."""
    sizes = tuple((tile.shape[1], tile.shape[2]) for tile in tiles)
    return PackedTiles(torch.cat([tile.reshape(-1) for tile in tiles]), sizes)
