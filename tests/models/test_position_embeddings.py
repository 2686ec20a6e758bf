"""Position embeddings at other grids."""

import pytest
import torch

from dinov2.models import build_backbone
from dinov2.models.pos_embed import interpolate_pos_embed


def test_the_native_grid_is_untouched():
    pos = torch.randn(1, 17, 8)
    assert interpolate_pos_embed(pos, 4, 4, antialias=False, offset=0.1) is pos


@pytest.mark.parametrize("offset", [0.0, 0.1])
@pytest.mark.parametrize("antialias", [False, True])
def test_a_constant_stays_constant_and_cls_is_kept(offset, antialias):
    pos = torch.cat([torch.randn(1, 1, 8), torch.randn(1, 1, 8).expand(1, 16, 8)], dim=1)
    out = interpolate_pos_embed(pos, 3, 7, antialias, offset)
    assert out.shape == (1, 22, 8)
    assert torch.equal(out[:, :1], pos[:, :1])
    torch.testing.assert_close(out[:, 1:], pos[:, 1:2].expand(1, 21, 8))


def test_rows_stay_rows():
    """An embedding that grows down the rows only still does so after resizing, at the same scale."""
    grid = torch.arange(8.0)[:, None, None].expand(8, 8, 1).reshape(1, 64, 1)
    out = interpolate_pos_embed(torch.cat([torch.zeros(1, 1, 1), grid], 1), 16, 4, False, 0.0)[0, 1:].reshape(16, 4)
    assert torch.allclose(out, out[:, :1].expand(-1, 4), atol=1e-5)
    expected = (torch.arange(16) + 0.5) / 2 - 0.5
    torch.testing.assert_close(
        out[4:-4, 0], expected[4:-4], atol=0.06, rtol=0
    )  # the cubic kernel is not exact on lines


def test_the_offset_enters_through_the_scale_factor():
    grid = torch.randn(1, 64, 4)
    pos = torch.cat([torch.zeros(1, 1, 4), grid], 1)
    out = interpolate_pos_embed(pos, 5, 6, False, 0.1)[0, 1:].reshape(5, 6, 4)
    expected = torch.nn.functional.interpolate(
        grid.reshape(1, 8, 8, 4).permute(0, 3, 1, 2), scale_factor=(5.1 / 8, 6.1 / 8), mode="bicubic"
    )
    torch.testing.assert_close(out, expected[0].permute(1, 2, 0))


def test_an_offset_that_breaks_the_grid_says_so():
    with pytest.raises(ValueError, match=r"interpolate_offset=1.5 turns the 4 x 5 grid"):
        interpolate_pos_embed(torch.zeros(1, 65, 4), 4, 5, False, 1.5)


@pytest.mark.parametrize(("img_size", "side"), [(64, 4), (256, 16), (112, 7)])
def test_the_table_has_the_grid_of_the_training_size(img_size, side):
    model = build_backbone("vit12", embed_dim=32, num_heads=2, depth=1, img_size=img_size)
    assert model.pos_embed.shape == (1, side * side + 1, 32)
