"""The suite of the CPU's backends for Triton's on a GPU: every length, number of states and dtype, and any shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_inputs import draw_scan, draw_ssd
from scan_loops import LENGTHS, STATES, assert_all_near, exactly, selective_scan_loop, ssd_loop, with_gradients

from dinov2.ops import selective_scan, ssd

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,  # Triton compiles two kernels for each number of states and dtype
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
# What the dual form's products in the inputs' precision add to the relative error.
PRODUCTS = {torch.float32: 0.0, torch.float16: 3e-3, torch.bfloat16: 2e-2}
DTYPES = tuple(PRODUCTS)


def on_the_gpu(args):
    return {name: None if tensor is None else tensor.cuda() for name, tensor in args.items()}


def check_scan(args, softplus=True):
    found = with_gradients(selective_scan, on_the_gpu(args), delta_softplus=softplus, backend="triton")
    assert_all_near(found, exactly(selective_scan_loop, args, delta_softplus=softplus))


def check_ssd(args):
    found = with_gradients(ssd, on_the_gpu(args), backend="triton")
    assert_all_near(found, exactly(ssd_loop, args), PRODUCTS[args["x"].dtype])


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_the_selective_scan_in_every_size(dtype, states, length):
    check_scan(draw_scan(2, 5, states, length, dtype))


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_the_dual_form_in_every_size(dtype, states, length):
    check_ssd(draw_ssd(2, length, 4, 5, 2, states, dtype))


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 40),
    states=st.integers(1, 20),
    length=st.integers(1, 70),
    left_out=st.sets(st.sampled_from(["D", "z", "delta_bias"])),
    softplus=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_any_selective_scan(batch, channels, states, length, left_out, softplus, dtype, seed):
    args = draw_scan(batch, channels, states, length, dtype, seed)
    if not softplus:  # steps are positive
        args |= {"delta": args["delta"].abs(), "delta_bias": args["delta_bias"].abs()}
    check_scan({name: None if name in left_out else tensor for name, tensor in args.items()}, softplus)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 70),
    heads_and_groups=st.sampled_from([(1, 1), (2, 1), (2, 2), (6, 1), (6, 2), (6, 3), (6, 6)]),
    channels=st.integers(1, 40),
    states=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_any_dual_form(batch, length, heads_and_groups, channels, states, dtype, seed):
    check_ssd(draw_ssd(batch, length, heads_and_groups[0], channels, heads_and_groups[1], states, dtype, seed))
