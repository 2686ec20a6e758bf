"""Every backend of the selective scan against float64 loops and numerical derivatives, and its input rules."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_inputs import DECAYS, SCAN_STEPS, extreme_scan
from scan_inputs import draw_scan as draw
from scan_loops import assert_all_near, assert_near, cases, exactly, selective_scan_loop, usable, with_gradients

from dinov2.ops import selective_scan

LOW = (torch.float32, torch.bfloat16, torch.float16)
BACKENDS = usable("selective_scan")
DOUBLE_BACKENDS = usable("selective_scan", torch.float64)


@lru_cache(maxsize=4)
def exact_results(dtype, length, states):
    return exactly(selective_scan_loop, draw(2, 5, states, length, dtype), delta_softplus=True)


@pytest.mark.parametrize(
    ("backend", "dtype", "length", "states"), cases("selective_scan", (*LOW, torch.float64)), ids=str
)
def test_forward_and_all_gradients_match_the_float64_loop(backend, dtype, length, states):
    args = draw(2, 5, states, length, dtype)
    found = with_gradients(selective_scan, args, delta_softplus=True, backend=backend)
    assert found["y"].dtype == dtype
    assert all(found[name].dtype == tensor.dtype for name, tensor in args.items())
    exact = exact_results(dtype, length, states)
    # With one step the state starts at 0, so A has no influence; everything else must.
    assert all(t.abs().max() > 0 for name, t in exact.items() if name != "A" or length > 1)
    assert_all_near(found, exact)


@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_is_the_definition_number_by_number(backend):
    args = draw(2, 3, 4, 17, torch.float32)
    u, delta, A, B, C, D, z, bias = (tensor.double().numpy() for tensor in args.values())
    expected = np.zeros_like(u)
    for b in range(2):
        for d in range(3):
            h = np.zeros(4)
            for t in range(17):
                step = np.log1p(np.exp(delta[b, d, t] + bias[d]))
                for n in range(4):
                    h[n] = np.exp(step * A[d, n]) * h[n] + step * u[b, d, t] * B[b, n, t]
                gate = z[b, d, t] / (1 + np.exp(-z[b, d, t]))
                expected[b, d, t] = (sum(C[b, n, t] * h[n] for n in range(4)) + D[d] * u[b, d, t]) * gate
    y = selective_scan(**args, delta_softplus=True, backend=backend)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("left_out", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")], ids=str)
@pytest.mark.parametrize("length", [2, 18])
@pytest.mark.parametrize("backend", DOUBLE_BACKENDS)
def test_gradcheck(backend, length, left_out):
    args = {name: t.requires_grad_() for name, t in draw(1, 2, 2, length).items() if name not in left_out}

    def function(*tensors):
        return selective_scan(**dict(zip(args, tensors, strict=True)), delta_softplus=True, backend=backend)

    assert torch.autograd.gradcheck(function, tuple(args.values()))


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 9),
    states=st.integers(1, 20),
    length=st.integers(1, 70),
    left_out=st.sets(st.sampled_from(["D", "z", "delta_bias"])),
    softplus=st.booleans(),
    dtype=st.sampled_from(LOW),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_options(batch, channels, states, length, left_out, softplus, dtype, seed):
    args = draw(batch, channels, states, length, dtype, seed)
    if not softplus:  # steps are positive
        args |= {"delta": args["delta"].abs(), "delta_bias": args["delta_bias"].abs()}
    args = {name: None if name in left_out else tensor for name, tensor in args.items()}
    exact = exactly(selective_scan_loop, args, delta_softplus=softplus)
    for backend in usable("selective_scan", dtype, states):
        assert_all_near(with_gradients(selective_scan, args, delta_softplus=softplus, backend=backend), exact)


@pytest.mark.parametrize("raw", [-1e4, -200.0, -100.0, -30.0, 30.0, 100.0, 1e4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_steps_before_softplus(backend, raw):
    """softplus underflows to 0 and exp(step A) rounds to 1 below; above, exp(step A) underflows and exp(raw) cannot be
    written in float32."""
    args = draw(2, 3, 4, 70, torch.float32)
    args["delta"] = args["delta"] + raw
    exact = exactly(selective_scan_loop, args, delta_softplus=True)
    assert_all_near(with_gradients(selective_scan, args, delta_softplus=True, backend=backend), exact)


@pytest.mark.parametrize("steps", SCAN_STEPS, ids=str)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_steps_and_decays(backend, decay, steps):
    args = extreme_scan(steps, decay)
    assert_all_near(with_gradients(selective_scan, args, backend=backend), exactly(selective_scan_loop, args))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_lower_the_scan(backend):
    args = draw(2, 5, 4, 50, torch.float32)
    outside = selective_scan(**args, delta_softplus=True, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        inside = selective_scan(**args, delta_softplus=True, backend=backend)
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("backend", BACKENDS)
def test_later_inputs_do_not_reach_earlier_outputs(backend):
    args = draw(1, 3, 4, 40, torch.float32)
    before = selective_scan(**args, delta_softplus=True, backend=backend)
    args["u"] = args["u"].clone()
    args["u"][..., 20:] += 1
    after = selective_scan(**args, delta_softplus=True, backend=backend)
    assert torch.equal(before[..., :20], after[..., :20])
    assert (before[..., 20:] != after[..., 20:]).all()


def transposed(t):
    return t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.ndim > 1 else t.repeat_interleave(2)[::2]


def strided(t):
    return t.repeat_interleave(2, dim=-1)[..., ::2]


def offset(t):
    return torch.cat([torch.zeros_like(t[..., :1]), t], dim=-1)[..., 1:]


@pytest.mark.parametrize("layout", [transposed, strided, offset])
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_memory_layout_works(backend, layout):
    args = draw(2, 5, 4, 33, torch.float32)
    exact = exactly(selective_scan_loop, args, delta_softplus=True)
    leaves = {name: tensor.requires_grad_() for name, tensor in args.items()}
    views = {name: layout(leaf) for name, leaf in leaves.items()}
    assert not any(view.is_contiguous() for view in views.values() if view.ndim > 1)
    found = with_gradients(lambda **_: selective_scan(**views, delta_softplus=True, backend=backend), {})
    assert_near(found["y"], exact["y"], "y")
    for name, leaf in leaves.items():
        assert_near(leaf.grad, exact[name], name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_may_share_its_projections(backend):
    args = draw(3, 5, 4, 33, torch.float32)
    shared = {name: args[name][:1].expand(3, -1, -1) for name in ("B", "C")}
    expected = selective_scan_loop(**(args | shared), delta_softplus=True)
    assert_near(selective_scan(**(args | shared), delta_softplus=True, backend=backend), expected, "y")


WRONG_SHAPE = {
    "u": lambda t: t[0],
    "delta": lambda t: t[..., :-1],
    "A": lambda t: t[0],
    "B": lambda t: t[:, :-1],
    "C": lambda t: t[..., :-1],
    "D": lambda t: t[:-1],
    "z": lambda t: t[:, :-1],
    "delta_bias": lambda t: t[:, None],
}
NAMES = tuple(WRONG_SHAPE)
EMPTY = {  # no batch, no channel, no token, no state
    "batch": {"u": 0, "delta": 0, "B": 0, "C": 0, "z": 0},
    "channels": {"u": 1, "delta": 1, "A": 0, "D": 0, "z": 1, "delta_bias": 0},
    "length": {"u": 2, "delta": 2, "B": 2, "C": 2, "z": 2},
    "states": {"A": 1, "B": 1, "C": 1},
}


def refusal(args):
    with pytest.raises(ValueError, match=r"^selective_scan: ") as error:
        selective_scan(**args)
    return str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_shape_is_refused_by_name_shape_and_rule(name):
    args = draw(2, 3, 4, 5)
    args[name] = WRONG_SHAPE[name](args[name])
    message = refusal(args)
    assert f"{name} has shape {tuple(args[name].shape)}" in message
    assert "expected" in message or "need" in message


@pytest.mark.parametrize("axis", EMPTY)
def test_an_empty_axis_is_refused_by_name_shape_and_rule(axis):
    args = draw(2, 3, 4, 5)
    args = {n: t.narrow(EMPTY[axis][n], 0, 0) if n in EMPTY[axis] else t for n, t in args.items()}
    message = refusal(args)
    assert f"u {tuple(args['u'].shape)}" in message
    assert f"A {tuple(args['A'].shape)}" in message
    assert "empty" in message


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.int64, torch.bool])
@pytest.mark.parametrize("name", NAMES)
def test_a_dtype_that_is_not_real_is_refused_by_name_shape_and_rule(name, dtype):
    args = draw(2, 3, 4, 5)
    args[name] = args[name].to(dtype)
    message = refusal(args)
    assert f"{name} {tuple(args[name].shape)} has dtype {dtype}" in message
    assert "real floating-point" in message


@pytest.mark.parametrize("name", NAMES[1:])
def test_another_device_is_refused_by_name_shape_and_rule(name):
    args = draw(2, 3, 4, 5)
    args[name] = args[name].to("meta")
    message = refusal(args)
    assert f"{name} {tuple(args[name].shape)} is on meta but u is on cpu" in message
