"""Packs of batches of several sizes: in and out, and what mixes tokens stays within its batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dinov2.ops.packing import each_batch, pack, select_tokens, unpack

shapes_of = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=4)


def batches_of(shapes, *rest):
    return [torch.randn(count, length, *rest, dtype=torch.float64) for count, length in shapes]


@given(shapes_of)
def test_unpacking_undoes_packing(shapes):
    batches = batches_of(shapes, 2)
    packed = pack(batches)
    assert packed.shape == (1, sum(count * length for count, length in shapes), 2)
    for part, batch in zip(unpack(packed, tuple(shapes)), batches, strict=True):
        assert torch.equal(part, batch)


@pytest.mark.parametrize("rest", [(4,), (3, 2, 4)])
def test_parts_are_views_and_gradients_come_back_in_one_piece(rest):
    shapes = ((2, 3), (1, 4))
    packed = pack(batches_of(shapes, *rest)).requires_grad_()
    parts = unpack(packed, shapes)
    assert {part.untyped_storage().data_ptr() for part in parts} == {packed.untyped_storage().data_ptr()}
    weights = batches_of(shapes, *rest)
    sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True)).backward()
    assert torch.equal(packed.grad, pack(weights))


def test_each_batch_sees_its_own_images():
    shapes = ((2, 3), (1, 4))
    batches = batches_of(shapes, 2)
    seen = []
    out = each_batch(lambda x: seen.append(x) or x.cumsum(1), pack(batches), shapes)
    assert [tuple(x.shape) for x in seen] == [(2, 3, 2), (1, 4, 2)]
    assert torch.equal(out, pack([x.cumsum(1) for x in batches]))
    assert torch.equal(each_batch(lambda x: x.cumsum(1), batches[0], None), batches[0].cumsum(1))


def test_selecting_tokens():
    x = torch.randn(1, 7, 2)
    assert select_tokens(x, None) is x
    assert torch.equal(select_tokens(x, torch.tensor([4, 0])), x[:, [4, 0]])
    assert select_tokens(x, torch.tensor([], dtype=torch.int64)).shape == (1, 0, 2)
