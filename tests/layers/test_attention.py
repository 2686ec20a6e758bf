"""Self-attention against torch.nn.MultiheadAttention with the same weights."""

import pytest
import torch
from torch import nn

from dinov2.layers.attention import Attention


@pytest.mark.parametrize("length", [1, 2, 17])
def test_it_is_multi_head_attention(length):
    torch.manual_seed(0)
    ours = Attention(24, 3).double()
    nn.init.normal_(ours.qkv.bias)
    nn.init.normal_(ours.proj.bias)
    theirs = nn.MultiheadAttention(24, 3, batch_first=True).double()
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.proj.weight,
            "out_proj.bias": ours.proj.bias,
        }
    )
    x = torch.randn(2, length, 24, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


def test_it_does_not_know_the_order_of_tokens():
    torch.manual_seed(0)
    layer, x = Attention(24, 3).double(), torch.randn(1, 10, 24, dtype=torch.float64)
    order = torch.randperm(10)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])


def test_biases_are_optional():
    layer = Attention(24, 3, qkv_bias=False, proj_bias=False)
    assert {name for name, _ in layer.named_parameters()} == {"qkv.weight", "proj.weight"}


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="5 heads do not divide the width 24"):
        Attention(24, 5)
