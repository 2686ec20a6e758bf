"""Every backend of state-space duality against float64 loops, its materialised matrix and numerical derivatives."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_inputs import DECAYS, SSD_STEPS, extreme_ssd, one_large_step
from scan_inputs import draw_ssd as draw
from scan_loops import assert_all_near, assert_near, cases, exactly, ssd_loop, usable, with_gradients

from dinov2.ops import ssd

LOW = (torch.float32, torch.bfloat16, torch.float16)
BACKENDS = usable("ssd")
DOUBLE_BACKENDS = usable("ssd", torch.float64)


@lru_cache(maxsize=4)
def exact_results(dtype, length, states):
    return exactly(ssd_loop, draw(2, length, 4, 5, 2, states, dtype))


@pytest.mark.parametrize(("backend", "dtype", "length", "states"), cases("ssd", (*LOW, torch.float64)), ids=str)
def test_forward_and_all_gradients_match_the_float64_loop(backend, dtype, length, states):
    args = draw(2, length, 4, 5, 2, states, dtype)
    found = with_gradients(ssd, args, backend=backend)
    assert found["y"].dtype == dtype
    assert all(found[name].dtype == tensor.dtype for name, tensor in args.items())
    exact = exact_results(dtype, length, states)
    # With one step the state starts at 0, so A has no influence; everything else must.
    assert all(t.abs().max() > 0 for name, t in exact.items() if name != "A" or length > 1)
    assert_all_near(found, exact)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_is_the_definition_head_by_head(backend, groups):
    args = draw(2, 17, 4, 3, groups, 5, torch.float32)
    x, dt, A, B, C, D = (tensor.double().numpy() for tensor in args.values())
    expected = np.zeros_like(x)
    for b in range(2):
        for h in range(4):
            group = h // (4 // groups)
            state = np.zeros((3, 5))
            for t in range(17):
                state = np.exp(dt[b, t, h] * A[h]) * state + dt[b, t, h] * np.outer(x[b, t, h], B[b, t, group])
                expected[b, t, h] = state @ C[b, t, group] + D[h] * x[b, t, h]
    y = ssd(**args, chunk_size=8, backend=backend)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_multiplication_by_a_semiseparable_matrix(backend):
    args = draw(1, 13, 2, 3, 1, 4, torch.float32)
    x, dt, A, B, C, _ = (t.double().numpy() if n == "A" else t.double().numpy()[0] for n, t in args.items())
    y = ssd(**(args | {"D": None}), chunk_size=4, backend=backend)[0].numpy()
    for head in range(2):
        matrix = np.zeros((13, 13))
        for i in range(13):
            for j in range(i + 1):
                decay = np.exp(A[head] * dt[j + 1 : i + 1, head].sum())
                matrix[i, j] = C[i, 0] @ B[j, 0] * decay * dt[j, head]
        np.testing.assert_allclose(y[:, head], matrix @ x[:, head], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 7, 8, 21, 64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_chunk_size_changes_nothing(backend, chunk_size):
    args = draw(2, 21, 4, 3, 2, 5, torch.float32)
    assert_all_near(with_gradients(ssd, args, chunk_size=chunk_size, backend=backend), exactly(ssd_loop, args))


@pytest.mark.parametrize("left_out", [(), ("D",)], ids=str)
@pytest.mark.parametrize("chunk_size", [3, 64])
@pytest.mark.parametrize("backend", DOUBLE_BACKENDS)
def test_gradcheck(backend, chunk_size, left_out):
    args = {name: t.requires_grad_() for name, t in draw(1, 5, 2, 2, 1, 2).items() if name not in left_out}

    def function(*tensors):
        return ssd(**dict(zip(args, tensors, strict=True)), chunk_size=chunk_size, backend=backend)

    assert torch.autograd.gradcheck(function, tuple(args.values()))


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 70),
    heads_and_groups=st.sampled_from([(1, 1), (2, 1), (2, 2), (6, 1), (6, 2), (6, 3), (6, 6)]),
    channels=st.integers(1, 9),
    states=st.integers(1, 20),
    chunk_size=st.integers(1, 80),
    skip=st.booleans(),
    dtype=st.sampled_from(LOW),
    seed=st.integers(0, 1000),
)
def test_any_shape(batch, length, heads_and_groups, channels, states, chunk_size, skip, dtype, seed):
    args = draw(batch, length, heads_and_groups[0], channels, heads_and_groups[1], states, dtype, seed)
    if not skip:
        args["D"] = None
    exact = exactly(ssd_loop, args)
    for backend in usable("ssd", dtype, states):
        assert_all_near(with_gradients(ssd, args, chunk_size=chunk_size, backend=backend), exact)


@pytest.mark.parametrize("steps", SSD_STEPS, ids=str)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_steps_and_decays(backend, decay, steps):
    """exp(dt A) rounds to 1 or underflows, and its inverse overflows."""
    args = extreme_ssd(steps, decay)
    assert_all_near(with_gradients(ssd, args, backend=backend), exactly(ssd_loop, args))


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_steps_after_a_large_one_keep_their_decay(backend):
    args = one_large_step()
    assert_near(ssd(**args, backend=backend), ssd_loop(**args), "y")


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_lower_the_scan(backend):
    args = draw(2, 20, 2, 3, 1, 4, torch.float32)
    outside = ssd(**args, chunk_size=8, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ssd(**args, chunk_size=8, backend=backend)
    assert torch.equal(inside, outside)


def transposed(t):
    return t.transpose(0, 1).contiguous().transpose(0, 1) if t.ndim > 1 else t.repeat_interleave(2)[::2]


def strided(t):
    return t.repeat_interleave(2, dim=-1)[..., ::2]


def offset(t):
    return torch.cat([torch.zeros_like(t[..., :1]), t], dim=-1)[..., 1:]


@pytest.mark.parametrize("layout", [transposed, strided, offset])
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_memory_layout_works(backend, layout):
    args = draw(2, 33, 4, 5, 2, 4, torch.float32)
    exact = exactly(ssd_loop, args)
    leaves = {name: tensor.requires_grad_() for name, tensor in args.items()}
    views = {name: layout(leaf) for name, leaf in leaves.items()}
    assert not any(view.is_contiguous() for view in views.values() if view.ndim > 1)
    found = with_gradients(lambda **_: ssd(**views, backend=backend), {})
    assert_near(found["y"], exact["y"], "y")
    for name, leaf in leaves.items():
        assert_near(leaf.grad, exact[name], name)


WRONG_SHAPE = {
    "x": lambda t: t[0],
    "dt": lambda t: t[:, :-1],
    "A": lambda t: t[:-1],
    "B": lambda t: t[:, :, 0],
    "C": lambda t: t[..., :-1],
    "D": lambda t: t[:, None],
}
NAMES = tuple(WRONG_SHAPE)
EMPTY = {  # the axis of each argument: no batch, no token, no head, no channel, no state
    "batch": {"x": 0, "dt": 0, "B": 0, "C": 0},
    "length": {"x": 1, "dt": 1, "B": 1, "C": 1},
    "heads": {"x": 2, "dt": 2, "A": 0, "D": 0},
    "channels": {"x": 3},
    "states": {"B": 3, "C": 3},
}


def refusal(args, **options):
    with pytest.raises(ValueError, match=r"^ssd: ") as error:
        ssd(**args, **options)
    return str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_shape_is_refused_by_name_shape_and_rule(name):
    args = draw(2, 5, 4, 3, 2, 5)
    args[name] = WRONG_SHAPE[name](args[name])
    message = refusal(args)
    assert f"{name} has shape {tuple(args[name].shape)}" in message
    assert "expected" in message or "need" in message


@pytest.mark.parametrize("axis", EMPTY)
def test_an_empty_axis_is_refused_by_name_shape_and_rule(axis):
    args = draw(2, 5, 4, 3, 2, 5)
    args = {n: t.narrow(EMPTY[axis][n], 0, 0) if n in EMPTY[axis] else t for n, t in args.items()}
    message = refusal(args)
    name = "B" if axis == "states" else "x"
    assert f"{name} has shape {tuple(args[name].shape)}" in message
    assert "non-empty" in message


def test_groups_must_divide_the_heads():
    message = refusal(draw(2, 5, 4, 3, 3, 5))
    assert "B has shape (2, 5, 3, 5)" in message
    assert "divisor of 4" in message


@pytest.mark.parametrize("chunk_size", [0, -1])
def test_the_chunk_must_be_positive(chunk_size):
    message = refusal(draw(1, 5, 2, 3, 1, 4), chunk_size=chunk_size)
    assert f"chunk_size is {chunk_size}" in message
    assert "positive" in message


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.int64, torch.bool])
@pytest.mark.parametrize("name", NAMES)
def test_a_dtype_that_is_not_real_is_refused_by_name_shape_and_rule(name, dtype):
    args = draw(2, 5, 4, 3, 2, 5)
    args[name] = args[name].to(dtype)
    message = refusal(args)
    assert f"{name} {tuple(args[name].shape)} has dtype {dtype}" in message
    assert "real floating-point" in message


@pytest.mark.parametrize("name", NAMES[1:])
def test_another_device_is_refused_by_name_shape_and_rule(name):
    args = draw(2, 5, 4, 3, 2, 5)
    args[name] = args[name].to("meta")
    message = refusal(args)
    assert f"{name} {tuple(args[name].shape)} is on meta but x is on cpu" in message
