"""The cross-entropy in chunks against its formula in float64, values and gradients, and what it allocates."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dinov2.loss import row_chunks as chunks
from dinov2.loss.cross_entropy import soft_cross_entropy


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of two rows of seven columns."""
    monkeypatch.setitem(chunks.CHUNK, "cpu", 15)


def draw(rows, columns=7, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    scores = 5 * torch.randn(rows, columns, generator=g, dtype=torch.float64)
    return scores.to(dtype).requires_grad_(), torch.rand(rows, columns, generator=g, dtype=torch.float64)


def formula(scores, targets, temperature):
    return -(targets * torch.log_softmax(scores / temperature, 1)).sum(1)


@pytest.mark.parametrize("rows", [0, 1, 2, 5])
@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_value_and_gradient(small_chunks, rows, temperature):
    scores, targets = draw(rows)
    weights = torch.rand(rows, dtype=torch.float64)
    expected = formula(scores, targets, temperature)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), scores)
    found = soft_cross_entropy(scores, targets, temperature)
    (gradient,) = torch.autograd.grad((found * weights).sum(), scores)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_gradcheck(small_chunks):
    scores, targets = draw(3)
    assert torch.autograd.gradcheck(lambda s: soft_cross_entropy(s, targets, 0.5), scores)


@given(st.integers(0, 20), st.integers(1, 20), st.integers(1, 100))
@settings(max_examples=50)
def test_chunks_cover_every_row_once(rows, columns, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(chunks.CHUNK, "cpu", size)
        found = chunks.row_chunks(torch.zeros(rows, columns))
    assert [row for part in found for row in range(rows)[part]] == list(range(rows))
    assert all(len(range(rows)[part]) * columns <= max(size, columns) for part in found)


def test_scores_far_apart_do_not_overflow():
    scores = torch.tensor([[1000.0, -1000.0]], requires_grad=True)
    loss = soft_cross_entropy(scores, torch.tensor([[0.0, 1.0]]), 0.1)
    loss.sum().backward()
    assert loss.item() == pytest.approx(20000)
    torch.testing.assert_close(scores.grad, torch.tensor([[10.0, -10.0]]))


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_low_precision_scores_are_computed_in_float32(low):
    scores, targets = draw(4, dtype=low)
    with torch.autocast("cpu", torch.bfloat16):
        loss = soft_cross_entropy(scores, targets.float(), 0.1)
    loss.sum().backward()
    wide = scores.detach().double().requires_grad_()
    expected = formula(wide, targets.float().double(), 0.1)
    expected.sum().backward()
    assert loss.dtype == torch.float32
    assert scores.grad.dtype == low
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.grad.double(), wide.grad, rtol=torch.finfo(low).eps, atol=1e-3)


class Largest(TorchDispatchMode):
    """Collects where results as large as the whole matrix lie."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.storages = numel, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().nbytes() >= 4 * self.numel:
                self.storages.add(leaf.untyped_storage().data_ptr())
        return out


def test_only_the_gradient_is_as_large_as_the_scores(small_chunks):
    scores, targets = (tensor.detach().float() for tensor in draw(100))
    scores.requires_grad_()
    before = {scores.untyped_storage().data_ptr(), targets.untyped_storage().data_ptr()}
    with Largest(scores.numel()) as forward:
        loss = soft_cross_entropy(scores, targets, 0.1).sum()
    with Largest(scores.numel()) as backward:
        (gradient,) = torch.autograd.grad(loss, scores)
    assert forward.storages <= before
    assert backward.storages - before == {gradient.untyped_storage().data_ptr()}
