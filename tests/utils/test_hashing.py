"""The hash of a model's weights."""

import torch
from torch import nn

from dinov2.utils.hashing import hash_weights


def test_hash_follows_values_names_shapes_and_dtypes():
    model = nn.Linear(3, 2)
    first = hash_weights(model)
    assert hash_weights(model) == first
    assert hash_weights(nn.Sequential(model)) != first
    same_bytes = nn.Linear(2, 3)
    with torch.no_grad():
        same_bytes.weight.copy_(model.weight.reshape(3, 2))
        same_bytes.bias = nn.Parameter(torch.cat([model.bias, torch.zeros(1)])[:2])
    assert hash_weights(same_bytes) != first
    with torch.no_grad():
        model.bias[0] += 1
    assert hash_weights(model) != first
    assert hash_weights(nn.Linear(3, 2).half()) != hash_weights(nn.Linear(3, 2).bfloat16())
