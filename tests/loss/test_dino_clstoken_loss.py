"""The DINO loss against a float64 loop over pairs, images and prototypes."""

import numpy as np
import pytest
import torch

from dinov2.loss import dino_loss


def log_softmax(x):
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def draw(crops, batch, prototypes, dtype=torch.float64):
    return [torch.randn(batch, prototypes, dtype=dtype) for _ in range(crops)]


@pytest.mark.parametrize(("students", "teachers"), [(1, 1), (3, 2), (8, 2)])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_sum_over_pairs_of_the_mean_cross_entropy(students, teachers, temperature):
    torch.manual_seed(0)
    scores = draw(students, 4, 7)
    targets = [torch.softmax(t, -1) for t in draw(teachers, 4, 7)]
    expected = 0.0
    for s in scores:
        for t in targets:
            for image in range(4):
                expected -= t[image].numpy() @ log_softmax(s[image].numpy() / temperature) / 4
    assert dino_loss(scores, targets, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_the_default_temperature_is_a_tenth():
    torch.manual_seed(0)
    scores, targets = draw(2, 3, 5), [torch.softmax(t, -1) for t in draw(2, 3, 5)]
    assert dino_loss(scores, targets) == dino_loss(scores, targets, 0.1)


def test_the_gradient_is_softmax_minus_target():
    torch.manual_seed(0)
    (scores,), (target,) = draw(1, 4, 7), [torch.softmax(t, -1) for t in draw(1, 4, 7)]
    scores.requires_grad_()
    dino_loss([scores], [target]).backward()
    expected = (torch.softmax(scores.detach() / 0.1, -1) - target) / 0.1 / 4
    torch.testing.assert_close(scores.grad, expected, rtol=1e-5, atol=1e-7)


def test_bf16_scores_do_not_lower_the_loss():
    torch.manual_seed(0)
    scores, targets = draw(2, 4, 7, torch.bfloat16), [torch.softmax(t, -1) for t in draw(2, 4, 7, torch.float32)]
    loss = dino_loss(scores, targets)
    assert loss.dtype == torch.float32
    assert loss == dino_loss([s.float() for s in scores], targets)
