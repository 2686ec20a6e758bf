"""Tiles as tensors, compressed again, and packed."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from dinov2.data.tiles import pack_tiles, recompress

SIZES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=8)


@settings(deadline=None, max_examples=50)
@given(sizes=SIZES, limit=st.integers(1, 200))
def test_groups_give_every_tile_back_once(sizes: list[tuple[int, int]], limit: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tiles = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    found: dict[int, Tensor] = {}
    for members, group in pack_tiles(tiles).groups(limit):
        assert len({sizes[number] for number in members}) == 1
        assert group.numel() <= limit or len(members) == 1
        assert not set(members) & set(found)
        found |= dict(zip(members, group, strict=True))
    assert sorted(found) == list(range(len(tiles)))
    assert all(torch.equal(found[number], tile) for number, tile in enumerate(tiles))


@pytest.mark.parametrize("quality", [1, 60, 100])
def test_recompression_is_pillows(random_tile: Callable[..., Image.Image], quality: int) -> None:
    image = random_tile(np.random.default_rng(0), 33, 40)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    expected = np.asarray(Image.open(buffer))
    assert np.array_equal(recompress(pil_to_tensor(image), quality).permute(1, 2, 0).numpy(), expected)


def test_recompression_of_one_pixel() -> None:
    assert recompress(torch.full((3, 1, 1), 100, dtype=torch.uint8), 90).shape == (3, 1, 1)
