"""Targets from teacher scores: Sinkhorn-Knopp's marginals and iterations, and softmax with a moving centre."""

import numpy as np
import pytest
import torch

from dinov2.loss import SoftmaxCenter, sinkhorn_knopp


def slow_sinkhorn(scores, temperature, iterations=3):
    """DINOv2's procedure, number by number, in float64 (prototypes x samples there, transposed here)."""
    q = np.exp((scores - scores.max()).astype(np.float64) / temperature)
    samples, prototypes = q.shape
    q /= q.sum()
    for _ in range(iterations):
        for k in range(prototypes):
            q[:, k] /= q[:, k].sum() * prototypes
        for m in range(samples):
            q[m] /= q[m].sum() * samples
    return q * samples


def scores_of(samples, prototypes, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, size=(samples, prototypes))


@pytest.mark.parametrize(("samples", "prototypes"), [(1, 5), (6, 4), (4, 30), (64, 16)])
@pytest.mark.parametrize("temperature", [0.04, 0.07, 1.0])
def test_it_is_the_procedure(samples, prototypes, temperature):
    scores = scores_of(samples, prototypes)
    targets = sinkhorn_knopp(torch.from_numpy(scores), temperature)
    np.testing.assert_allclose(targets.numpy(), slow_sinkhorn(scores, temperature), rtol=2e-4, atol=1e-7)


def test_rows_sum_to_one_and_columns_to_their_share():
    scores = torch.from_numpy(scores_of(96, 12))
    targets = sinkhorn_knopp(scores, 0.5, iterations=50)
    torch.testing.assert_close(targets.sum(1), scores.new_ones(96))
    torch.testing.assert_close(targets.sum(0), scores.new_full((12,), 96 / 12), rtol=1e-3, atol=0)
    # Three rounds come near; the softmax alone does not.
    three = sinkhorn_knopp(scores, 0.07)
    torch.testing.assert_close(three.sum(1), scores.new_ones(96))
    spread = (three.sum(0) - 8).abs().max()
    assert spread < 2.5
    assert spread < 0.5 * (torch.softmax(scores / 0.07, -1).sum(0) - 8).abs().max()


def test_adding_a_constant_changes_nothing():
    scores = torch.from_numpy(scores_of(8, 5)).float()
    torch.testing.assert_close(sinkhorn_knopp(scores + 100, 0.1), sinkhorn_knopp(scores, 0.1), rtol=1e-3, atol=1e-5)


def test_large_scores_neither_overflow_nor_lose_a_row():
    scores = torch.from_numpy(scores_of(8, 5)).float() * 1000
    scores[3] -= 5000  # far below the others
    targets = sinkhorn_knopp(scores, 0.04)
    assert torch.isfinite(targets).all()
    torch.testing.assert_close(targets.sum(1), torch.ones(8))


def test_a_row_far_below_the_others_gets_its_targets():
    scores = scores_of(8, 5)
    scores[3] -= 20  # exp(-20 / 0.1) is 0 in float32
    targets = sinkhorn_knopp(torch.from_numpy(scores), 0.1)
    np.testing.assert_allclose(targets.numpy(), slow_sinkhorn(scores, 0.1), rtol=1e-3, atol=1e-6)


def test_no_samples_give_no_targets():
    assert sinkhorn_knopp(torch.zeros(0, 5), 0.07).shape == (0, 5)


def test_targets_carry_no_gradient_and_scores_stay_as_they_are():
    scores = torch.randn(4, 5, requires_grad=True)
    before = scores.detach().clone()
    assert not sinkhorn_knopp(scores, 0.07).requires_grad
    assert torch.equal(scores.detach(), before)


def test_bf16_scores_give_float32_targets():
    scores = torch.from_numpy(scores_of(6, 4)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        targets = sinkhorn_knopp(scores, 0.07)
    assert targets.dtype == torch.float32
    expected = slow_sinkhorn(scores.double().numpy(), 0.07)
    np.testing.assert_allclose(targets.numpy(), expected, rtol=2e-4, atol=1e-7)


def test_softmax_center_follows_its_recurrence():
    center = SoftmaxCenter(5, momentum=0.8)
    rng = np.random.default_rng(0)
    moving = np.zeros(5)
    for samples, temperature in [(4, 0.04), (7, 0.05), (1, 0.07)]:
        scores = rng.uniform(-1, 1, size=(samples, 5))
        logits = (scores - moving) / temperature
        expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(center(torch.from_numpy(scores), temperature).numpy(), expected, rtol=1e-4)
        moving = 0.8 * moving + 0.2 * scores.mean(0)
        np.testing.assert_allclose(center.center.numpy(), moving[None], rtol=1e-5, atol=1e-7)


def test_softmax_center_starts_at_zero_with_dinos_momentum_and_is_saved():
    center = SoftmaxCenter(3)
    assert center.momentum == 0.9
    assert not center.center.any()
    assert set(center.state_dict()) == {"center"}


def test_an_empty_batch_leaves_the_center():
    center = SoftmaxCenter(3)
    center(torch.ones(2, 3), 0.1)
    before = center.center.clone()
    assert center(torch.zeros(0, 3), 0.1).shape == (0, 3)
    assert torch.equal(center.center, before)
