"""The iBOT loss against a float64 loop over images and their masked patches."""

import numpy as np
import pytest
import torch

from dinov2.loss import ibot_patch_loss

MASKED = (3, 0, 1, 5)  # masked patches of each image; the second has none


def draw():
    torch.manual_seed(0)
    total = sum(MASKED)
    scores = torch.randn(total, 6, dtype=torch.float64)
    targets = torch.softmax(torch.randn(total, 6, dtype=torch.float64), -1)
    weights = torch.tensor([1 / count for count in MASKED for _ in range(count)], dtype=torch.float64)
    return scores, targets, weights


def test_mean_over_the_patches_of_an_image_then_over_all_images():
    scores, targets, weights = draw()
    expected, patch = 0.0, 0
    for count in MASKED:
        of_image = []
        for _ in range(count):
            s, t = scores[patch].numpy() / 0.1, targets[patch].numpy()
            of_image.append(-(t @ (s - s.max() - np.log(np.exp(s - s.max()).sum()))))
            patch += 1
        expected += np.mean(of_image) / len(MASKED) if of_image else 0.0
    loss = ibot_patch_loss(scores, targets, weights, n_images=len(MASKED))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_weighs_each_patch():
    scores, targets, weights = draw()
    scores.requires_grad_()
    ibot_patch_loss(scores, targets, weights, n_images=4, student_temp=0.2).backward()
    expected = (torch.softmax(scores.detach() / 0.2, -1) - targets) / 0.2 * weights[:, None] / 4
    torch.testing.assert_close(scores.grad, expected, rtol=1e-5, atol=1e-7)


def test_a_batch_without_masks_costs_nothing_and_has_a_gradient():
    scores = torch.zeros(0, 6, requires_grad=True)
    loss = ibot_patch_loss(scores, torch.zeros(0, 6), torch.zeros(0), n_images=4)
    loss.backward()
    assert loss.item() == 0
    assert scores.grad.shape == (0, 6)
