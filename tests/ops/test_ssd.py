"""State-space duality against a float64 NumPy loop, its materialised matrix, and numerical derivatives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov2.ops import ssd


def draw(batch, length, heads, channels, groups, states, dtype=torch.float64, seed=0):
    """Arguments of a scan."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    return {
        "x": normal(batch, length, heads, channels),
        "dt": torch.rand(batch, length, heads, generator=g, dtype=torch.float64).to(dtype) + 0.05,
        "A": -torch.rand(heads, generator=g, dtype=torch.float64).to(dtype) - 0.1,
        "B": normal(batch, length, groups, states),
        "C": normal(batch, length, groups, states),
        "D": normal(heads),
    }


def numpy_ssd(x, dt, A, B, C, D):
    """The definition, head by head."""
    batch, length, heads, channels = x.shape
    out = np.zeros_like(x)
    for b in range(batch):
        for h in range(heads):
            group = h // (heads // B.shape[2])
            state = np.zeros((channels, B.shape[3]))
            for t in range(length):
                state = np.exp(dt[b, t, h] * A[h]) * state + dt[b, t, h] * np.outer(x[b, t, h], B[b, t, group])
                out[b, t, h] = state @ C[b, t, group] + D[h] * x[b, t, h]
    return out


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 17, 50])
def test_forward_is_the_definition(length, groups, backend):
    args = draw(2, length, 4, 3, groups, 5)
    expected = numpy_ssd(**{name: tensor.numpy() for name, tensor in args.items()})
    y = ssd(**args, chunk_size=8, backend=backend)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [1, 7, 8, 64])
def test_gradients_match_autograd_through_the_loop_for_every_chunk_size(chunk_size):
    gradients = {}
    weight = torch.randn(2, 21, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for backend in ("cpu", "reference"):
        args = {name: tensor.requires_grad_() for name, tensor in draw(2, 21, 4, 3, 2, 5).items()}
        (ssd(**args, chunk_size=chunk_size, backend=backend) * weight).sum().backward()
        gradients[backend] = {name: tensor.grad for name, tensor in args.items()}
    for name, expected in gradients["reference"].items():
        assert expected.abs().max() > 0
        torch.testing.assert_close(gradients["cpu"][name], expected, rtol=1e-9, atol=1e-11, msg=name)


def test_gradcheck():
    args = {name: tensor.requires_grad_() for name, tensor in draw(1, 5, 2, 2, 1, 2).items()}
    assert torch.autograd.gradcheck(
        lambda x, dt, A, B, C, D: ssd(x, dt, A, B, C, 3, D, backend="cpu"), tuple(args.values())
    )


def test_it_is_multiplication_by_a_semiseparable_matrix():
    args = draw(1, 13, 2, 3, 1, 4)
    x, dt, A, B, C = (
        args[name][0].numpy() if name != "A" else args[name].numpy() for name in ("x", "dt", "A", "B", "C")
    )
    y = ssd(*(args[name] for name in ("x", "dt", "A", "B", "C")), chunk_size=4)[0].numpy()
    for head in range(2):
        matrix = np.zeros((13, 13))
        for i in range(13):
            for j in range(i + 1):
                decay = np.exp(A[head] * dt[j + 1 : i + 1, head].sum())
                matrix[i, j] = C[i, 0] @ B[j, 0] * decay * dt[j, head]
        np.testing.assert_allclose(y[:, head], matrix @ x[:, head], rtol=1e-10, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2),
    length=st.integers(1, 30),
    heads=st.sampled_from([1, 2, 6]),
    channels=st.integers(1, 5),
    groups=st.sampled_from([1, 2]),
    states=st.integers(1, 5),
    chunk_size=st.integers(1, 40),
)
def test_any_shape_in_float32(batch, length, heads, channels, groups, states, chunk_size):
    groups = min(groups, heads)
    args = draw(batch, length, heads, channels, groups, states, torch.float32)
    expected = ssd(**{name: tensor.double() for name, tensor in args.items()}, backend="reference")
    y = ssd(**args, chunk_size=chunk_size, backend="cpu")
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)


def test_strong_decay_over_a_long_chunk_stays_finite():
    args = draw(1, 64, 2, 3, 1, 4, torch.float32)
    args = args | {"dt": args["dt"] * 50, "A": args["A"] * 20}
    y = ssd(**args, chunk_size=64)
    expected = ssd(**{name: tensor.double() for name, tensor in args.items()}, backend="reference")
    torch.testing.assert_close(y.double(), expected, rtol=1e-3, atol=1e-3)


def test_bf16_input_is_scanned_in_float32():
    args = draw(2, 20, 2, 3, 1, 4, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        y = ssd(**args, chunk_size=8)
    assert y.dtype == torch.bfloat16
    expected = ssd(**{name: tensor.float() for name, tensor in args.items()}, backend="reference")
    assert (y.float() - expected).abs().max() <= 2**-8 * expected.abs().max()


WRONG = {
    "x": lambda t: t[0],
    "dt": lambda t: t[:, :-1],
    "A": lambda t: t[:-1],
    "B": lambda t: t[:, :, 0],
    "C": lambda t: t[..., :-1],
    "D": lambda t: t[:, None],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_shape_is_named(name):
    args = draw(2, 5, 4, 3, 2, 5)
    args[name] = WRONG[name](args[name])
    with pytest.raises(ValueError, match=rf"ssd: {name} has shape") as error:
        ssd(**args)
    assert str(tuple(args[name].shape)) in str(error.value)


def test_groups_must_divide_the_heads():
    args = draw(2, 5, 4, 3, 3, 5)
    with pytest.raises(ValueError, match="divisor of 4"):
        ssd(**args)


@pytest.mark.parametrize("chunk_size", [0, -1])
def test_the_chunk_must_be_positive(chunk_size):
    with pytest.raises(ValueError, match=f"chunk_size is {chunk_size}"):
        ssd(**draw(1, 5, 2, 3, 1, 4), chunk_size=chunk_size)
