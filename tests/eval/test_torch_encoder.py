import numpy as np
import pytest
import torch
from torch import nn

from dinov2.utils.hashing import hash_weights
from eval.encoders import encoder_key
from eval.errors import EvalError
from eval.torch_encoder import TorchEncoder, Transform, pool

TRANSFORM = Transform((0.7, 0.5, 0.6), (0.2, 0.25, 0.3), 16)


def encoder(**changes):
    values = {
        "name": "flat",
        "model": nn.Flatten(),
        "transform": TRANSFORM,
        "tokens": lambda model, x: model(x),
        "weights_hash": "0",
        "pooling": "mean",
    }
    return TorchEncoder(**{**values, **changes})


def test_transform_normalises_each_channel():
    images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    out = TRANSFORM(images)
    assert out.shape == (2, 3, 16, 16)
    torch.testing.assert_close(out[1, 2, 3, 4], (images[1, 3, 4, 2] / 255 - 0.6) / 0.3)


def test_transform_resizes_within_the_range_of_pixels():
    images = torch.zeros(1, 33, 33, 3, dtype=torch.uint8)
    images[:, 16:] = 255
    out = TRANSFORM(images)
    assert out.shape == (1, 3, 16, 16)
    assert out[:, 0].min() == pytest.approx(-0.7 / 0.2)
    assert out[:, 0].max() == pytest.approx(0.3 / 0.2)


def test_embeds_in_eval_mode_and_leaves_the_network_untouched():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(768), nn.Dropout(0.5))
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    before = hash_weights(model)
    enc = encoder(model=model)
    np.testing.assert_array_equal(enc.embed(images), enc.embed(images))
    assert enc.embed(images).dtype == np.float32
    assert hash_weights(model) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"weights_hash": "1"},
        {"pooling": "cls"},
        {"transform": Transform((0.7, 0.5, 0.6), (0.2, 0.25, 0.3), 32)},
        {"transform": Transform((0.7, 0.5, 0.5), (0.2, 0.25, 0.3), 16)},
        {"extra": {"architecture": "other"}},
    ],
)
def test_key_follows_each_setting(changes):
    assert encoder_key(encoder(**changes)) != encoder_key(encoder())
    assert encoder_key(encoder(name="moved")) == encoder_key(encoder())


def test_patches_must_be_square():
    with pytest.raises(EvalError, match="16 x 20 px"):
        encoder().embed(np.zeros((1, 16, 20, 3), np.uint8))


def test_pooling():
    cls, patches = torch.ones(2, 4), torch.arange(24.0).view(2, 3, 4)
    torch.testing.assert_close(pool(cls, patches, "cls"), cls)
    torch.testing.assert_close(pool(cls, patches, "mean"), patches.mean(1))
    torch.testing.assert_close(pool(cls, patches, "cls+mean"), torch.cat([cls, patches.mean(1)], 1))
    with pytest.raises(EvalError, match="no CLS token"):
        pool(None, patches, "cls")


def test_hash_of_weights_follows_values_names_and_shapes():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    first = hash_weights(model)
    assert hash_weights(model) == first
    assert hash_weights(nn.Sequential(model)) != first
    with torch.no_grad():
        model.bias[0] += 1
    assert hash_weights(model) != first
