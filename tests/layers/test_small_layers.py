"""Feed-forward layers, LayerScale, stochastic depth, patch embedding and the residual block."""

import pytest
import torch
from timm.layers import GluMlp
from timm.layers import Mlp as TimmMlp
from torch import nn

from dinov2.layers.attention import Attention
from dinov2.layers.block import Block
from dinov2.layers.drop_path import DropPath
from dinov2.layers.layer_scale import LayerScale
from dinov2.layers.mlp import Mlp
from dinov2.layers.patch_embed import PatchEmbed
from dinov2.layers.swiglu import SwiGLU


def test_mlp_is_timms():
    torch.manual_seed(0)
    ours, theirs = Mlp(12, 48), TimmMlp(12, 48)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(ours(x), theirs(x))


def test_swiglu_is_timms():
    torch.manual_seed(0)
    ours = SwiGLU(12, 48)
    theirs = GluMlp(12, 64, act_layer=nn.SiLU, gate_last=False)
    theirs.load_state_dict(
        {name.replace("w12", "fc1").replace("w3", "fc2"): t for name, t in ours.state_dict().items()}
    )
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(("asked", "hidden"), [(6144, 4096), (4096, 2736), (48, 32), (12, 8)])
def test_swiglu_takes_two_thirds_rounded_up_to_eight(asked, hidden):
    with torch.device("meta"):
        layer = SwiGLU(16, asked)
    assert layer.w12.out_features == 2 * hidden
    assert layer.w3.in_features == hidden


def test_layer_scale_multiplies_channels():
    layer = LayerScale(3, 1e-5)
    assert torch.equal(layer.gamma, torch.full((3,), 1e-5))
    with torch.no_grad():
        layer.gamma.copy_(torch.tensor([1.0, 2.0, -3.0]))
    assert torch.equal(layer(torch.ones(1, 2, 3))[0, 1], torch.tensor([1.0, 2.0, -3.0]))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    layer, x = DropPath(0.3).train(), torch.ones(20_000, 2, 3)
    y = layer(x)
    kept = y[:, 0, 0] != 0
    assert torch.equal(y, torch.where(kept[:, None, None], x / 0.7, 0 * x))
    assert kept.float().mean() == pytest.approx(0.7, abs=0.02)  # six standard deviations
    assert y.mean() == pytest.approx(1.0, abs=0.03)


def test_drop_path_is_the_identity_in_evaluation_and_at_zero():
    x = torch.ones(4, 2)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_patch_embed_is_a_matrix_product_per_patch():
    torch.manual_seed(0)
    layer, x = PatchEmbed(4, 6), torch.randn(2, 3, 8, 12)
    tokens = layer(x)
    assert tokens.shape == (2, 6, 6)
    for row in range(2):
        for column in range(3):
            patch = x[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten(1)
            expected = patch @ layer.proj.weight.flatten(1).T + layer.proj.bias
            torch.testing.assert_close(tokens[:, 3 * row + column], expected)


@pytest.mark.parametrize(("size", "near"), [((30, 32), "32 x 32"), ((32, 35), "32 x 32"), ((3, 41), "16 x 48")])
def test_patch_embed_names_the_nearest_size(size, near):
    with pytest.raises(ValueError, match=f"image of {size[0]} x {size[1]} px: .* patch size 16; .* {near}"):
        PatchEmbed(16, 4)(torch.zeros(1, 3, *size))


def test_block_is_two_scaled_residual_branches():
    torch.manual_seed(0)
    block = Block(12, Attention(12, 3), Mlp(12, 24), norm_eps=0.5, layerscale=0.7).double()
    with torch.no_grad():
        block.ls2.gamma.mul_(2)
    x = torch.randn(2, 5, 12, dtype=torch.float64)

    def normed(t):  # the affine part is still the identity
        return (t - t.mean(-1, keepdim=True)) / (t.var(-1, unbiased=False, keepdim=True) + 0.5).sqrt()

    middle = x + 0.7 * block.attn(normed(x))
    torch.testing.assert_close(block(x), middle + 1.4 * block.mlp(normed(middle)))


def test_block_names_follow_dinov2_where_it_has_one():
    block = Block(8, nn.Identity(), nn.Identity(), norm_eps=1e-5)
    assert {name for name, _ in block.named_children()} >= {"mixer", "channel_mixer"}
    block = Block(8, Attention(8, 2), SwiGLU(8, 24), norm_eps=1e-5)
    assert {name for name, _ in block.named_children()} >= {"attn", "mlp"}
