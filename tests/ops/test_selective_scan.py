"""The selective scan against a float64 NumPy loop, the plain PyTorch loop and numerical derivatives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov2.ops import selective_scan

LENGTHS = (1, 2, 15, 16, 17, 33, 50)


def draw(batch, channels, states, length, dtype=torch.float64, seed=0):
    """Arguments of a scan with all options in use."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    return {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": -torch.rand(channels, states, generator=g, dtype=torch.float64).to(dtype) - 0.1,
        "B": normal(batch, states, length),
        "C": normal(batch, states, length),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "delta_bias": normal(channels),
    }


def numpy_scan(u, delta, A, B, C, D, z, delta_bias):
    """The definition, one number at a time."""
    batch, channels, length = u.shape
    out = np.zeros_like(u)
    for b in range(batch):
        for d in range(channels):
            h = np.zeros(A.shape[1])
            for t in range(length):
                step = np.log1p(np.exp(delta[b, d, t] + delta_bias[d]))
                h = np.exp(step * A[d]) * h + step * u[b, d, t] * B[b, :, t]
                gate = z[b, d, t] / (1 + np.exp(-z[b, d, t]))
                out[b, d, t] = (C[b, :, t] @ h + D[d] * u[b, d, t]) * gate
    return out


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("length", LENGTHS)
def test_forward_is_the_definition(length, backend):
    args = draw(2, 3, 4, length)
    expected = numpy_scan(**{name: tensor.numpy() for name, tensor in args.items()})
    y = selective_scan(**args, delta_softplus=True, backend=backend)
    assert y.dtype == torch.float64
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_gradients_of_all_arguments_match_autograd_through_the_loop(length):
    gradients = {}
    weight = torch.randn(2, 5, length, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for backend in ("cpu", "reference"):
        args = {name: tensor.requires_grad_() for name, tensor in draw(2, 5, 4, length).items()}
        (selective_scan(**args, delta_softplus=True, backend=backend) * weight).sum().backward()
        gradients[backend] = {name: tensor.grad for name, tensor in args.items()}
    for name, expected in gradients["reference"].items():
        # With one step the state starts at 0, so A has no influence; everything else must.
        assert expected.abs().max() > 0 or (name == "A" and length == 1)
        torch.testing.assert_close(gradients["cpu"][name], expected, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("length", [2, 18])
def test_gradcheck(length):
    args = {name: tensor.requires_grad_() for name, tensor in draw(1, 2, 2, length).items()}
    assert torch.autograd.gradcheck(
        lambda *tensors: selective_scan(*tensors, delta_softplus=True, backend="cpu"), tuple(args.values())
    )


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 7),
    states=st.integers(1, 5),
    length=st.integers(1, 40),
    options=st.sets(st.sampled_from(["D", "z", "delta_bias"])),
    softplus=st.booleans(),
)
def test_any_shape_and_options_in_float32(batch, channels, states, length, options, softplus):
    args = draw(batch, channels, states, length, torch.float32)
    for name in ("D", "z", "delta_bias"):
        if name not in options:
            args[name] = None
    if not softplus:  # steps are positive
        args["delta"] = args["delta"].abs()
        args["delta_bias"] = None if args["delta_bias"] is None else args["delta_bias"].abs()
    exact = {name: None if tensor is None else tensor.double() for name, tensor in args.items()}
    expected = selective_scan(**exact, delta_softplus=softplus, backend="reference")
    y = selective_scan(**args, delta_softplus=softplus, backend="cpu")
    assert y.dtype == torch.float32
    assert y.shape == (batch, channels, length)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)


def test_bf16_input_is_scanned_in_float32():
    args = draw(2, 5, 4, 50, torch.float32)
    low = {name: args[name].bfloat16() if name in ("u", "delta", "B", "C", "z") else args[name] for name in args}
    y = selective_scan(**low, delta_softplus=True)
    assert y.dtype == torch.bfloat16
    expected = selective_scan(**{name: t.float() for name, t in low.items()}, delta_softplus=True, backend="reference")
    assert (y.float() - expected).abs().max() <= 2**-8 * expected.abs().max()


def test_autocast_does_not_lower_the_scan():
    args = draw(2, 5, 4, 50, torch.float32)
    outside = selective_scan(**args, delta_softplus=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = selective_scan(**args, delta_softplus=True)
    assert torch.equal(inside, outside)


def test_later_inputs_do_not_reach_earlier_outputs():
    args = draw(1, 3, 4, 40)
    before = selective_scan(**args, delta_softplus=True)
    args["u"] = args["u"].clone()
    args["u"][..., 20:] += 1
    after = selective_scan(**args, delta_softplus=True)
    assert torch.equal(before[..., :20], after[..., :20])
    assert (before[..., 20:] != after[..., 20:]).all()


WRONG = {
    "u": lambda t: t[0],
    "delta": lambda t: t[..., :-1],
    "A": lambda t: t[0],
    "B": lambda t: t[:, :-1],
    "C": lambda t: t[..., :-1],
    "D": lambda t: t[:-1],
    "z": lambda t: t[:, :-1],
    "delta_bias": lambda t: t[:, None],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_shape_is_named(name):
    args = draw(2, 3, 4, 5)
    args[name] = WRONG[name](args[name])
    with pytest.raises(ValueError, match=rf"selective_scan: {name} has shape") as error:
        selective_scan(**args)
    assert str(tuple(args[name].shape)) in str(error.value)


def test_integers_and_complex_numbers_are_refused():
    args = draw(2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"A has dtype torch\.complex128"):
        selective_scan(**(args | {"A": args["A"].to(torch.complex128)}))
    with pytest.raises(ValueError, match=r"u has dtype torch\.int64"):
        selective_scan(**(args | {"u": args["u"].long()}))


def test_empty_axes_are_refused():
    args = draw(2, 3, 4, 5)
    with pytest.raises(ValueError, match="empty axis"):
        selective_scan(**(args | {"u": args["u"][:0]}))


def test_another_device_is_named():
    args = draw(2, 3, 4, 5)
    with pytest.raises(ValueError, match="B is on meta but u is on cpu"):
        selective_scan(**(args | {"B": args["B"].to("meta")}))
