"""The Triton kernels of state-space duality against a float64 loop: outputs and all gradients."""

import pytest
import torch
from scan_inputs import DECAYS, SSD_STEPS, draw_ssd, extreme_ssd, one_large_step
from scan_loops import assert_all_near, exactly, ssd_loop, with_gradients
from triton_interpreter import DEVICE, GPU, HERE, run_in_interpreter

from dinov2.ops.dispatch import usable_backends
from dinov2.ops.ssd.backends import TRITON_SIDES

# batch, length, heads, channels, groups, states; chunks have 16 tokens in float32
SHAPES = [(2, 1, 2, 5, 1, 3), (1, 2, 2, 16, 1, 1), (2, 7, 4, 3, 2, 16), (1, 50, 2, 17, 2, 5), (1, 33, 3, 8, 1, 33)]
IMAGE = (1, 257, 2, 5, 1, 8)  # the tokens of a whole one
LARGE = [(2, 257, 12, 64, 1, 64), (1, 1025, 4, 128, 2, 64), (1, 130, 2, 32, 1, 128)] if GPU else []
LOW = [(1, 7, 2, 16, 1, 16), (1, 70, 2, 16, 1, 16), (2, 20, 4, 3, 2, 64), (1, 33, 2, 5, 1, 1), IMAGE]
LOW += [(2, 257, 12, 64, 1, 64)] if GPU else []

if HERE:
    from dinov2.ops.ssd.triton_ssd import ssd_triton
else:

    def test_all_in_the_interpreter():
        run_in_interpreter(__file__)


def draw(batch, length, heads, channels, groups, states, low=torch.float32):
    """Arguments of a scan; dt and A are float32."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=g).to(DEVICE, low)

    return {
        "x": normal(batch, length, heads, channels),
        "dt": (torch.rand(batch, length, heads, generator=g) + 0.05).to(DEVICE),
        "A": (-torch.rand(heads, generator=g) - 0.1).to(DEVICE),
        "B": normal(batch, length, groups, states),
        "C": normal(batch, length, groups, states),
    }


def check(args, tolerance=2e-5):
    """Compare outputs and gradients with the loop in float64, relative to the largest entry of each."""
    actual = with_gradients(ssd_triton, args)
    expected = exactly(ssd_loop, args)
    assert actual["y"].dtype == args["x"].dtype
    for name, exact in expected.items():
        assert name == "y" or actual[name].dtype == args[name].dtype
        assert actual[name].isfinite().all(), name
        error = ((actual[name].double().cpu() - exact).abs().max() / exact.abs().max().clamp(min=1e-30)).item()
        assert error <= tolerance, f"{name}: {error:.2e} > {tolerance:.2e}"
    return expected


def check_as_on_a_cpu(args):
    """Compare as the tests of the backends that run on a CPU do, in the same bounds."""
    args = {name: tensor.to(DEVICE) for name, tensor in args.items() if name != "D"}
    assert_all_near(with_gradients(ssd_triton, args), exactly(ssd_loop, args))


class TestKernels:
    __test__ = HERE

    @pytest.mark.parametrize(("batch", "length", "heads", "channels", "groups", "states"), SHAPES + LARGE)
    def test_every_shape(self, batch, length, heads, channels, groups, states):
        args = draw(batch, length, heads, channels, groups, states)
        expected = check(args, 2e-5 if length < 100 else 1e-4)
        for name, gradient in expected.items():  # with one step A has no influence; everything else must
            assert gradient.abs().max() > 0 or (name == "A" and length == 1)

    @pytest.mark.parametrize(("states", "length"), [(1, 50), (8, 2), (16, 1), (64, 50)])
    def test_the_sizes_of_the_common_suite(self, states, length):
        check_as_on_a_cpu(draw_ssd(2, length, 4, 5, 2, states, torch.float32))

    @pytest.mark.parametrize(("channels", "states"), [TRITON_SIDES, TRITON_SIDES[::-1]])
    def test_the_largest_states_of_a_head_and_no_larger(self, channels, states):
        check_as_on_a_cpu(draw_ssd(1, 20, 1, channels, 1, states, torch.float32))
        assert usable_backends("ssd", "cuda", torch.float32, states, channels)[0] == "triton"
        for larger in ((states + 1, channels), (states, channels + 1)):
            assert "triton" not in usable_backends("ssd", "cuda", torch.float32, *larger)

    def test_the_tokens_of_a_whole_image(self):
        check_as_on_a_cpu(draw_ssd(*IMAGE, torch.float32))

    @pytest.mark.parametrize("shape", LOW)
    @pytest.mark.parametrize(("low", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
    def test_low_precision(self, shape, low, tolerance):
        # Products are rounded to the inputs' precision, then summed in float32.
        check(draw(*shape, low), tolerance)

    def test_decays_are_float32_in_low_precision(self):
        # 60 tokens that keep 0.998 each: rounded to bfloat16, 0.996, their sum would be 5% too small.
        one = torch.ones(1, 60, 1, 16, dtype=torch.bfloat16, device=DEVICE)
        pick = torch.zeros_like(one)
        pick[..., 0] = 1
        dt, A = torch.ones(1, 60, 1, device=DEVICE), torch.tensor([-0.002], device=DEVICE)
        y = ssd_triton(one, dt, A, pick, pick)
        expected = ssd_loop(*(t.cpu() for t in (one, dt, A, pick, pick)))
        torch.testing.assert_close(y.double().cpu(), expected, rtol=2e-2, atol=0)

    def test_one_float32_argument_makes_all_products_exact(self):
        args = draw(1, 20, 2, 16, 1, 16, torch.bfloat16)
        args["B"] = args["B"].float() * 1.001
        check(args | {"x": args["x"].float(), "C": args["C"].float()})
        error = with_gradients(ssd_triton, args)["B"].double().cpu() - exactly(ssd_loop, args)["B"]
        assert error.abs().max() < 1e-4

    @pytest.mark.parametrize("name", ["x", "dt", "B", "C"])
    def test_any_layout_gives_the_same(self, name):
        args = draw(2, 5, 2, 4, 2, 3)
        wide = torch.stack([args[name], args[name] + 1], dim=-1)  # what does not belong to the argument lies between
        other = args | {name: wide[..., 0]}
        flipped = args | {name: args[name].transpose(0, 1).contiguous().transpose(0, 1)}
        expected = with_gradients(ssd_triton, args)
        for arguments in (other, flipped):
            assert arguments[name].stride() != args[name].stride()
            actual = with_gradients(ssd_triton, arguments)
            for key, value in expected.items():
                assert torch.equal(actual[key], value), key

    def test_strong_decay_over_several_chunks_stays_finite(self):
        args = draw(1, 40, 2, 3, 1, 4)
        check(args | {"dt": args["dt"] * 50, "A": args["A"] * 20}, 2e-4)

    @pytest.mark.parametrize("steps", SSD_STEPS, ids=str)
    @pytest.mark.parametrize("decay", DECAYS)
    def test_extreme_steps_and_decays(self, decay, steps):
        check_as_on_a_cpu(extreme_ssd(steps, decay, batch=1))

    def test_small_steps_after_a_large_one_keep_their_decay(self):
        check_as_on_a_cpu(one_large_step())

    def test_a_step_of_zero_leaves_the_state_and_has_a_gradient(self):
        args = draw(1, 20, 1, 3, 1, 4)
        args["dt"][:, 5:15] = 0
        expected = check(args)
        assert expected["dt"][:, 5:15].abs().min() > 0

    def test_states_are_kept_for_the_backward_only(self):
        args = draw(1, 40, 2, 3, 1, 4)
        with torch.no_grad():
            plain = ssd_triton(**args)
        assert torch.equal(plain, ssd_triton(**args))
        assert torch.ops.dinov2.ssd_triton(*args.values(), False)[1].numel() == 0
        kept = torch.ops.dinov2.ssd_triton(*args.values(), True)[1]
        assert kept.shape == (1, 2, 2, 4, 3)
        assert kept.all()

    def test_double_is_refused(self):
        args = draw(1, 5, 2, 4, 1, 3)
        with pytest.raises(ValueError, match=r"x is float64.*use backend='cpu'"):
            ssd_triton(**(args | {"x": args["x"].double()}))

    @pytest.mark.parametrize("groups", [1, 2])
    def test_operators_can_be_traced(self, groups):
        call = [tensor.requires_grad_() for tensor in draw(1, 18, 2, 4, groups, 3).values()]
        torch.library.opcheck(torch.ops.dinov2.ssd_triton.default, (*call, True))

    @pytest.mark.skipif(not GPU, reason="the interpreter runs programs one after another")
    def test_results_repeat_exactly(self):
        args = draw(16, 257, 12, 64, 1, 64, torch.bfloat16)
        first, second = (with_gradients(ssd_triton, args) for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)
