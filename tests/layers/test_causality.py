"""Which token hears of which: impulses through the mixers and through a backbone whose CLS token is in the middle."""

import pytest
import torch

from dinov2.layers.hydra import Hydra
from dinov2.layers.mamba_vision import MambaVisionMixer
from dinov2.layers.vim import BidirectionalMamba
from dinov2.models import build_backbone

LENGTH = 14
AHEAD = 2  # the 'same' convolution of width 4 sees one token back and two ahead


def shaken(layer, seed=0):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=g))
    return layer.eval()


def reach(function, x):
    """Return R (L, L): whether an impulse at token j of x (1, L, D) changes output i of `function`."""
    before = function(x)  # (1, L', D)
    columns = []
    for j in range(x.shape[1]):
        struck = x.clone()
        struck[:, j] += torch.randn(x.shape[2], generator=torch.Generator().manual_seed(j))
        columns.append((function(struck) != before).any(-1)[0])
    return torch.stack(columns, dim=1)


def tokens(width):
    return torch.randn(1, LENGTH, width, generator=torch.Generator().manual_seed(3))


def band(first, last):
    """R that holds where first <= j - i <= last."""
    distance = torch.arange(LENGTH) - torch.arange(LENGTH)[:, None]
    return (distance >= first) & (distance <= last)


def branch(layer, part):
    """The mixer with the other half of its output projection's inputs cut off: 0 is the scan, 1 the convolution."""
    with torch.no_grad():
        half = layer.out_proj.in_features // 2
        layer.out_proj.weight[:, (1 - part) * half : (2 - part) * half] = 0
    return layer


@torch.no_grad()
def test_the_scan_of_mamba_vision_sees_the_past_and_two_tokens_ahead():
    torch.manual_seed(0)
    layer = branch(shaken(MambaVisionMixer(32)), 0)
    assert torch.equal(reach(layer, tokens(32)), band(-LENGTH, AHEAD))


@torch.no_grad()
def test_the_other_branch_of_mamba_vision_sees_one_token_back_and_two_ahead():
    torch.manual_seed(0)
    layer = branch(shaken(MambaVisionMixer(32)), 1)
    assert torch.equal(reach(layer, tokens(32)), band(-1, AHEAD))


def test_no_gradient_flows_to_the_future_of_mamba_vision():
    torch.manual_seed(0)
    layer, x = branch(shaken(MambaVisionMixer(32)), 0), tokens(32).requires_grad_()
    y = layer(x)
    for t in range(LENGTH):
        (gradient,) = torch.autograd.grad(y[0, t].sum(), x, retain_graph=True)
        assert torch.equal(gradient[0].ne(0).any(-1), torch.arange(LENGTH) <= t + AHEAD)


@torch.no_grad()
def test_each_direction_of_vim_is_causal_and_both_see_everything():
    torch.manual_seed(0)
    layer, x = shaken(BidirectionalMamba(32)), tokens(32)
    assert reach(layer, x).all()
    z = torch.ones(1, LENGTH, 64)
    assert torch.equal(reach(lambda u: layer.forward_direction(u, z), tokens(64)), band(-LENGTH, 0))


@torch.no_grad()
def test_hydra_sees_everything():
    torch.manual_seed(0)
    assert reach(shaken(Hydra(32)), tokens(32)).all()


@torch.no_grad()
def test_each_direction_of_hydra_is_causal_but_for_its_convolution():
    """What nothing enters the state of is silent; the convolution sees three tokens to both sides."""
    torch.manual_seed(0)
    layer, x = shaken(Hydra(32, headdim=64)), tokens(32)

    def silence(direction):  # its B comes right after x, or after B and C of the other direction
        start = layer.inner + 2 * layer.d_state * direction
        B = slice(start, start + layer.d_state)
        layer.in_proj.weight[layer.inner + B.start : layer.inner + B.stop] = 0
        layer.conv1d.bias[B] = 0

    silence(0)
    assert torch.equal(reach(layer, x), band(-3, LENGTH))
    silence(1)
    assert torch.equal(reach(layer, x), band(-3, 3))


def mamba_vision_backbone(registers):
    """One MambaVision block; its channel mixer works token by token."""
    torch.manual_seed(0)
    model = build_backbone(
        "mvhybrid",
        embed_dim=32,
        num_heads=2,
        img_size=32,
        patch_size=8,
        blocks=["1 x mamba_vision + mlp"],
        num_register_tokens=registers,
    )
    return shaken(model)


@torch.no_grad()
@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40), (8, 24), (8, 8)])
def test_patches_are_scanned_in_raster_order_around_the_cls_token(height, width, registers):
    """Struck pixels reach the patches after theirs in raster order and two before; CLS stands after half of them."""
    model = mamba_vision_backbone(registers)
    patches = height * width // 64
    x = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(4))
    before = model.forward_features(x)
    special = 1 + registers
    place = torch.arange(patches) + special * (torch.arange(patches) >= patches // 2)
    places = torch.cat([torch.arange(patches // 2, patches // 2 + special), place])  # CLS, registers, patches
    for row in range(height // 8):
        for column in range(width // 8):
            struck = x.clone()
            struck[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 1
            after = model.forward_features(struck)
            changed = (after["x_prenorm"] != before["x_prenorm"])[0].any(-1)
            source = place[row * (width // 8) + column]
            assert torch.equal(changed, places >= source - AHEAD)
            assert torch.equal(
                changed[special:], (after["x_norm_patchtokens"] != before["x_norm_patchtokens"])[0].any(-1)
            )
            assert changed[0] == (after["x_norm_clstoken"] != before["x_norm_clstoken"]).any()
