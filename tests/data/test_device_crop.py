"""Crops by matrix products against torchvision's RandomResizedCrop on the same boxes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from dinov2.data.device_crop import bicubic_weights, crop_tiles


@settings(deadline=None, max_examples=60)
@given(data=st.data(), height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 48))
def test_equals_torchvision(data: st.DataObject, height: int, width: int, size: int) -> None:
    boxes, flips = [], []
    for _ in range(4):  # two crops of two tiles
        h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
        boxes.append((data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w)), h, w))
        flips.append((data.draw(st.booleans()), data.draw(st.booleans())))
    tiles = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    out = crop_tiles(
        tiles.permute(0, 2, 1, 3),
        torch.tensor(boxes, dtype=torch.float32).view(2, 2, 4),
        torch.tensor(flips).view(2, 2, 2),
        size,
        longest=max(max(box[2:]) for box in boxes),
    )
    for number, (box, (upside_down, mirrored)) in enumerate(zip(boxes, flips, strict=True)):
        crop = TF.resized_crop(tiles[number // 2], *box, [size, size], InterpolationMode.BICUBIC, True).clamp(0, 1)
        crop = TF.vertical_flip(crop) if upside_down else crop
        crop = TF.horizontal_flip(crop) if mirrored else crop
        assert torch.allclose(out[number].permute(1, 0, 2), crop, rtol=0, atol=1e-5)


@pytest.mark.parametrize("start", [0, 3000])
def test_stays_exact_far_from_the_corner(start: int) -> None:
    line = torch.rand(1, 1, 4096, generator=torch.Generator().manual_seed(0))
    expected = TF.resized_crop(line.expand(3, 1, -1), 0, start, 1, 1000, [1, 224], InterpolationMode.BICUBIC, True)[0]
    weights = bicubic_weights(torch.tensor(float(start)), torch.tensor(1000.0), torch.tensor(False), 4096, 224, 1000)
    # float32 holds positions near 1000 to 6e-5 px, in torchvision's weights as in these
    assert torch.allclose(weights @ line[0, 0], expected[0], rtol=0, atol=3e-5)


def test_is_torchvisions_eight_bit_form_without_its_rounding(random_tile: Callable[..., Image.Image]) -> None:
    """Which rounds after each pass, and clips: not here, where bicubic's overshoot stays within the eight bits."""
    tile = (TF.pil_to_tensor(random_tile(np.random.default_rng(3), 70, 80)) * 0.6 + 50).to(torch.uint8)
    box = (5, 9, 51, 60)
    expected = TF.resized_crop(tile, *box, [48, 48], InterpolationMode.BICUBIC, True).float() / 255
    floats = (tile.float() / 255).permute(1, 0, 2)[None]
    out = crop_tiles(floats, torch.tensor([[box]]).float(), torch.tensor([[[False, False]]]), 48, 60)
    levels = (out[0].permute(1, 0, 2) - expected).abs() * 255
    assert float(levels.max()) <= 1.5
