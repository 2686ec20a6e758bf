"""The projection head: its formula, its prototypes' norms and how it starts."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from dinov2.layers.dino_head import DINOHead, WeightNormLinear


def test_prototypes_start_with_norm_one():
    torch.manual_seed(0)
    layer = WeightNormLinear(8, 30)
    assert torch.equal(layer.weight_g, torch.ones(30, 1))
    # The scores of the unit vectors are the columns of the weight matrix.
    weight = layer(torch.eye(8)).T
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(30))


def test_weight_norm_is_pytorchs():
    torch.manual_seed(0)
    ours = WeightNormLinear(8, 5).double()
    theirs = nn.utils.parametrizations.weight_norm(nn.Linear(8, 5, bias=False, dtype=torch.float64))
    with torch.no_grad():
        ours.weight_g.copy_(torch.rand(5, 1))
        theirs.parametrizations.weight.original0.copy_(ours.weight_g)
        theirs.parametrizations.weight.original1.copy_(ours.weight_v)
    x = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("nlayers", [1, 2, 3])
def test_the_whole_head(nlayers):
    torch.manual_seed(0)
    head = DINOHead(12, 20, nlayers=nlayers, hidden_dim=16, bottleneck_dim=6).double()
    linears = [module for module in head.mlp if isinstance(module, nn.Linear)]
    widths = [12, *[16] * (nlayers - 1), 6]
    assert [(m.in_features, m.out_features) for m in linears] == list(pairwise(widths))
    x = torch.randn(5, 12, dtype=torch.float64)
    y = x
    for index, module in enumerate(linears):
        if index:
            y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
        y = y @ module.weight.T + module.bias
    y = y / y.norm(dim=-1, keepdim=True)
    v = head.last_layer.weight_v
    expected = y @ (v / v.norm(dim=-1, keepdim=True)).T
    torch.testing.assert_close(head(x), expected)
    assert head(x).abs().max() <= 1 + 1e-9  # cosines, while weight_g is 1


def test_initialisation():
    torch.manual_seed(0)
    head = DINOHead(64, 128, hidden_dim=256, bottleneck_dim=32)
    for module in head.mlp:
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert not module.bias.any()
    assert {name for name, _ in head.last_layer.named_parameters()} == {"weight_g", "weight_v"}
