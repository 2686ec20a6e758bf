"""KoLeo against a float64 loop, and its gradient where points coincide."""

import numpy as np
import pytest
import torch

from dinov2.loss import koleo_loss


def slow_koleo(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    total = 0.0
    for i in range(len(x)):
        total -= np.log(min(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i))
    return total / len(x)


@pytest.mark.parametrize(("batch", "dim"), [(2, 3), (5, 4), (16, 8)])
def test_minus_mean_log_distance_to_the_nearest_neighbour(batch, dim):
    x = np.random.default_rng(batch).normal(size=(batch, dim)) * 7
    assert koleo_loss(torch.from_numpy(x)).item() == pytest.approx(slow_koleo(x), rel=1e-4, abs=1e-5)


def test_the_gradient_matches_finite_differences():
    x = np.random.default_rng(0).normal(size=(5, 3))
    tensor = torch.from_numpy(x).requires_grad_()
    koleo_loss(tensor).backward()
    for i, j in np.ndindex(*x.shape):
        shift = np.zeros_like(x)
        shift[i, j] = 1e-6
        slope = (slow_koleo(x + shift) - slow_koleo(x - shift)) / 2e-6
        assert tensor.grad[i, j].item() == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_opposite_points_are_each_others_neighbours():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert koleo_loss(x).item() == pytest.approx(-np.log(2), rel=1e-5)


def test_coinciding_points_have_a_finite_loss_and_gradient():
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1).requires_grad_()
    loss = koleo_loss(x)
    loss.backward()
    assert 10 < loss.item() < 50  # about -log(eps), not infinity
    assert torch.isfinite(x.grad).all()


def test_a_single_point_costs_nothing():
    x = torch.ones(1, 4, requires_grad=True)
    loss = koleo_loss(x)
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()


def test_autocast_does_not_lower_it():
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = koleo_loss(x)
    assert inside == koleo_loss(x)
