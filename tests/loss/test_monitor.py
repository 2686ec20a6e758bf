"""Entropies and norms against SciPy's and NumPy's."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from dinov2.loss import row_chunks
from dinov2.loss.monitor import mean_entropy, mean_norm, softmax_entropy


@pytest.fixture(params=[1, 7, 1 << 18])
def chunk(request, monkeypatch):
    """However many elements are worked on at a time."""
    monkeypatch.setitem(row_chunks.CHUNK, "cpu", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_entropies(chunk, dtype):
    scores = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 13))).to(dtype)
    expected = entropy(softmax(scores.double().numpy() / 0.1, axis=1), axis=1).mean()
    assert float(softmax_entropy(scores)) == pytest.approx(expected, rel=1e-4)
    probabilities = torch.softmax(scores.double() / 0.1, 1)
    assert float(mean_entropy(probabilities)) == pytest.approx(expected, rel=1e-4)


def test_their_ends(chunk):
    assert float(mean_entropy(torch.eye(4))) == 0
    assert float(mean_entropy(torch.full((3, 8), 1 / 8))) == pytest.approx(math.log(8))
    assert float(mean_entropy(torch.empty(0, 8))) == 0
    assert float(softmax_entropy(torch.zeros(2, 8))) == pytest.approx(math.log(8))
    assert math.isnan(float(softmax_entropy(torch.full((1, 3), float("nan")))))


def test_norms():
    x = np.random.default_rng(0).normal(size=(5, 7))
    assert float(mean_norm(torch.from_numpy(x))) == pytest.approx(np.linalg.norm(x, axis=1).mean())
    assert math.isnan(float(mean_norm(torch.tensor([[1.0], [float("nan")]]))))
