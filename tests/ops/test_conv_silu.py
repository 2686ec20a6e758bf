"""Every backend of the convolution with SiLU against sums written out in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_loops import assert_near, usable, with_gradients

from dinov2.ops import conv_silu

BACKENDS = usable("conv_silu")


def draw(batch, length, channels, width, bias, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    args = {
        "x": torch.randn(batch, length, channels, generator=g),
        "weight": torch.randn(channels, 1, width, generator=g),
        "bias": torch.randn(channels, generator=g) if bias else None,
    }
    return {name: None if t is None else t.to(dtype) for name, t in args.items()}


def definition(x, weight, bias, before):
    """Output t is silu(bias + sum_k weight[k] x[t + k - before]), one tap at a time."""
    x, weight = x.double(), weight.double()
    length, rows = x.shape[1], []
    for t in range(length):
        total = torch.zeros_like(x[:, 0]) if bias is None else bias.double().expand(x.shape[0], -1)
        for k in range(weight.shape[2]):
            if 0 <= t + k - before < length:
                total = total + weight[:, 0, k] * x[:, t + k - before]
        rows.append(total / (1 + torch.exp(-total)))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 35), st.integers(1, 7), st.booleans(), st.integers(0, 99))
def test_any_shape(backend, batch, length, channels, width, bias, seed):
    args, before = draw(batch, length, channels, width, bias, seed), seed % width
    found = with_gradients(conv_silu, args, before=before, backend=backend)
    exact = with_gradients(definition, {n: None if t is None else t.double() for n, t in args.items()}, before=before)
    for name, tensor in found.items():
        assert_near(tensor, exact[name], name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(backend, dtype):
    args = draw(2, 9, 20, 4, True, dtype=dtype)
    y = conv_silu(**args, before=1, backend=backend)
    assert y.dtype == dtype
    exact = definition(**args, before=1)
    assert (y.double() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_decides_the_dtype_of_the_output_and_gradients_are_float32(backend):
    args = {name: t.requires_grad_() for name, t in draw(2, 9, 20, 4, True).items()}
    with torch.autocast("cpu", torch.bfloat16):
        y = conv_silu(**args, before=1, backend=backend)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in args.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_memory_layout(backend):
    args = draw(2, 9, 20, 4, True)
    strided = {
        "x": args["x"].transpose(1, 2).contiguous().transpose(1, 2),
        "weight": args["weight"].expand(20, 2, 4)[:, :1],
        "bias": args["bias"].repeat_interleave(2)[::2],
    }
    found, expected = (with_gradients(conv_silu, a, before=1, backend=backend) for a in (strided, args))
    for name, tensor in found.items():
        assert_near(tensor, expected[name].double(), name)


def test_gradcheck():
    args = [t.double().requires_grad_() for t in draw(2, 5, 3, 4, True).values()]
    assert torch.autograd.gradcheck(lambda *tensors: conv_silu(*tensors, before=2), args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(3, 4)}, r"x has shape \(3, 4\); expected a non-empty \(batch, length, channels\)"),
        ({"x": torch.ones(2, 0, 4)}, r"x has shape \(2, 0, 4\); expected a non-empty"),
        ({"weight": torch.ones(3, 1, 4)}, r"weight has shape \(3, 1, 4\); expected \(4, 1, 4\)"),
        ({"weight": torch.ones(4, 1, 0)}, r"weight has shape \(4, 1, 0\); expected a positive width"),
        ({"bias": torch.ones(5)}, r"bias has shape \(5,\); expected \(4,\)"),
        ({"x": torch.ones(2, 5, 4, dtype=torch.int64)}, r"x \(2, 5, 4\) has dtype torch.int64.*real floating-point"),
        ({"bias": torch.ones(4, device="meta")}, r"bias \(4,\) is on meta but x is on cpu"),
        ({"before": 4}, r"before is 4; a filter of width 4 needs 0 to 3"),
        ({"before": -1}, r"before is -1"),
    ],
)
def test_bad_input_is_named(change, message):
    args = {"x": torch.ones(2, 5, 4), "weight": torch.ones(4, 1, 4), "bias": torch.ones(4), "before": 1}
    with pytest.raises(ValueError, match=f"conv_silu: {message}"):
        conv_silu(**(args | change))
