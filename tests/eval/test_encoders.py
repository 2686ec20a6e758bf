import numpy as np
import pytest

from eval.encoders import ColorStats, encoder_key, make_encoder
from eval.errors import EvalError


def test_color_stats_by_hand():
    image = np.zeros((1, 10, 10, 3), np.uint8)
    image[0, ..., 0] = np.arange(100).reshape(10, 10)  # red: 0..99
    image[0, ..., 1] = 7
    values = ColorStats().embed(image)
    assert values.shape == (1, 12)
    assert values.dtype == np.float32
    expected = [49.5, 7, 0, np.arange(100).std(), 0, 0, 9.9, 7, 0, 89.1, 7, 0]
    np.testing.assert_allclose(values[0], expected, rtol=1e-6)


def test_key_ignores_the_name_and_follows_the_settings():
    a, b = ColorStats(), ColorStats()
    b.name = "another name"
    assert encoder_key(a) == encoder_key(b)

    class Other(ColorStats):
        settings = {"weights_hash": "color-stats-1", "pooling": "mean"}  # noqa: RUF012

    assert encoder_key(Other()) != encoder_key(a)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("colour-stats", "Nearest: color-stats"),
        ("tim:resnet18", "Nearest: timm"),
        ("timm", "not one of"),
        ("color-stats:x", "not one of"),
    ],
)
def test_unknown_specifications(spec, message):
    with pytest.raises(EvalError, match=message):
        make_encoder(spec)
