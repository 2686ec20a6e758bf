"""The Triton selective scan against a float64 loop: outputs and the gradients of all arguments."""

import pytest
import torch
from scan_inputs import DECAYS, SCAN_STEPS, draw_scan, extreme_scan
from scan_loops import assert_all_near, exactly, selective_scan_loop, with_gradients
from triton_interpreter import DEVICE, GPU, HERE, run_in_interpreter

from dinov2.ops.dispatch import usable_backends
from dinov2.ops.selective_scan.backends import TRITON_STATES

OPTIONS = ("D", "z", "delta_bias")
SHAPES = [(2, 5, 1, 1), (2, 3, 16, 2), (1, 7, 8, 7), (1, 5, 64, 7), (1, 33, 3, 18), (1, 3, 16, 50)]
LARGE = [(3, 385, 16, 257), (2, 96, 64, 1025), (1, 384, 16, 4097), (2, 40, 8, 1024)] if GPU else []

if HERE:
    from dinov2.ops.selective_scan.triton_operators import CHUNK
    from dinov2.ops.selective_scan.triton_scan import _token_major, scan_triton
else:

    def test_all_in_the_interpreter():
        run_in_interpreter(__file__)


def draw(batch, channels, states, length, low=torch.float32, options=OPTIONS):
    """Arguments with all options in use, views of token-major tensors; A, D and the bias are float32."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape, dtype=torch.float32):
        return torch.randn(*shape, generator=g).to(DEVICE, dtype)

    args = {
        "u": normal(batch, length, channels, dtype=low).transpose(1, 2),
        "delta": normal(batch, length, channels, dtype=low).transpose(1, 2),
        "A": -torch.rand(channels, states, generator=g).to(DEVICE) - 0.1,
        "B": normal(batch, length, states, dtype=low).transpose(1, 2),
        "C": normal(batch, length, states, dtype=low).transpose(1, 2),
        "D": normal(channels),
        "z": normal(batch, length, 2 * channels, dtype=low)[..., channels:].transpose(1, 2),
        "delta_bias": normal(channels),
    }
    return {name: tensor if name in options or name not in OPTIONS else None for name, tensor in args.items()}


def check(args, softplus=True, tolerance=2e-5):
    """Compare outputs and gradients with the loop in float64, relative to the largest entry of each."""
    actual = with_gradients(scan_triton, args, delta_softplus=softplus)
    expected = exactly(selective_scan_loop, args, delta_softplus=softplus)
    assert actual["y"].dtype == args["u"].dtype
    for name, exact in expected.items():
        assert name == "y" or actual[name].dtype == args[name].dtype
        assert actual[name].isfinite().all(), name
        scale = exact.abs().max().clamp(min=1e-30)
        # What is stored in a low precision has its rounding, what is accumulated from such inputs does not.
        allowed = max(tolerance, torch.finfo(actual[name].dtype).eps)
        error = ((actual[name].double().cpu() - exact).abs().max() / scale).item()
        assert error <= allowed, f"{name}: {error:.2e} > {allowed:.2e}"
    return expected


def check_as_on_a_cpu(args, softplus):
    """Compare as the tests of the backends that run on a CPU do, in the same bounds."""
    args = {name: None if tensor is None else tensor.to(DEVICE) for name, tensor in args.items()}
    actual = with_gradients(scan_triton, args, delta_softplus=softplus)
    assert_all_near(actual, exactly(selective_scan_loop, args, delta_softplus=softplus))


class TestKernels:
    __test__ = HERE

    @pytest.mark.parametrize(("batch", "channels", "states", "length"), SHAPES + LARGE)
    def test_every_shape(self, batch, channels, states, length):
        expected = check(draw(batch, channels, states, length), tolerance=2e-5 if length < 100 else 1e-4)
        for name, gradient in expected.items():  # with one step A has no influence; everything else must
            assert gradient.abs().max() > 0 or (name == "A" and length == 1)

    @pytest.mark.parametrize(
        ("options", "softplus"),
        [((), True), (("D",), True), (("z",), True), (("delta_bias",), True), ((), False), (OPTIONS, False)],
    )
    def test_every_option(self, options, softplus):
        args = draw(1, 3, 2, 3, options=options)
        if not softplus:  # steps are positive
            args = args | {n: args[n].abs() for n in ("delta", "delta_bias") if args[n] is not None}
        check(args, softplus)

    @pytest.mark.parametrize("states", [1, 8, 16, 64])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_the_numbers_of_states_of_the_common_suite(self, dtype, states):
        check_as_on_a_cpu(draw_scan(2, 5, states, 7, dtype), softplus=True)

    def test_the_largest_number_of_states_and_no_more(self):
        check_as_on_a_cpu(draw_scan(1, 2, TRITON_STATES, 3, torch.float32), softplus=True)
        assert usable_backends("selective_scan", "cuda", size=TRITON_STATES)[0] == "triton"
        assert "triton" not in usable_backends("selective_scan", "cuda", size=TRITON_STATES + 1)

    def test_the_tokens_of_a_whole_image(self):
        check_as_on_a_cpu(draw_scan(1, 5, 8, 257, torch.float32), softplus=True)

    @pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize(("batch", "channels", "states", "length"), [(1, 3, 4, 6), (1, 33, 16, 18)])
    def test_low_precision_inputs_are_scanned_in_float32(self, low, batch, channels, states, length):
        check(draw(batch, channels, states, length, low))

    def test_dtypes_may_be_mixed(self):
        args = draw(1, 5, 4, 7)
        check(args | {"u": args["u"].bfloat16(), "B": args["B"].half(), "A": args["A"].bfloat16()})

    def test_any_layout_gives_the_same(self):
        args = draw(2, 3, 4, 5)
        other = args | {name: args[name].contiguous() for name in ("u", "delta", "B", "C", "z")}
        assert all(other[name].stride() != args[name].stride() for name in ("u", "delta", "B", "C", "z"))
        expected, actual = (with_gradients(scan_triton, a, delta_softplus=True) for a in (args, other))
        for key, value in expected.items():
            assert torch.equal(actual[key], value), key

    def test_views_of_token_major_tensors_are_not_copied(self):
        for name in ("u", "delta", "z"):
            view = draw(2, 5, 4, 7)[name]
            assert _token_major(view).data_ptr() == view.data_ptr()
        assert scan_triton(**draw(2, 5, 4, 7), delta_softplus=True).stride() == (35, 1, 5)

    def test_steps_from_nothing_to_huge(self):
        args = draw(1, 4, 4, 20, options=("z",))
        values = torch.tensor([-1e4, -30.0, -8.0, 0.0, 25.0, 90.0, 3e4], device=DEVICE)
        args["delta"] = values[torch.arange(20, device=DEVICE) % 7].expand(1, 4, 20)
        args["z"] = args["z"] * 100
        check(args)

    @pytest.mark.parametrize("steps", SCAN_STEPS, ids=str)
    @pytest.mark.parametrize("decay", DECAYS)
    def test_extreme_steps_and_decays(self, decay, steps):
        check_as_on_a_cpu(extreme_scan(steps, decay, batch=1, length=70 if GPU else 10), softplus=False)

    def test_softplus_is_accurate_where_it_is_small(self):
        delta = torch.linspace(-60, 30, 181, device=DEVICE)
        one = torch.ones(1, 181, 1, device=DEVICE)
        y = scan_triton(one, delta.view(1, 181, 1), -one[0], one[:, :1], one[:, :1], delta_softplus=True)
        expected = torch.nn.functional.softplus(delta.double(), threshold=100)
        # The exponent itself is rounded: 60 log2(e) has an error of 2^-18 in float32.
        torch.testing.assert_close(y.flatten().double(), expected, rtol=5e-6, atol=0)

    def test_states_are_kept_for_the_backward_only(self):
        args = draw(1, 5, 4, CHUNK + 1)
        with torch.no_grad():
            plain = scan_triton(**args, delta_softplus=True)
        assert torch.equal(plain, scan_triton(**args, delta_softplus=True))
        major = [args[n].transpose(1, 2).contiguous() for n in ("u", "delta", "B", "C")]
        call = (major[0], major[1], args["A"].t().contiguous(), *major[2:], None, None, None, True)
        assert torch.ops.dinov2.selective_scan_triton(*call, False)[1].numel() == 0
        kept = torch.ops.dinov2.selective_scan_triton(*call, True)[1]
        assert kept.shape == (1, 2, 4, 5)
        assert not kept[:, 0].any()
        assert kept[:, 1].all()

    def test_gradients_of_some_arguments_only(self):
        args = draw(1, 3, 4, 5)
        rest = {name: tensor for name, tensor in args.items() if name != "C"}
        every = with_gradients(scan_triton, args, delta_softplus=True)
        alone = with_gradients(scan_triton, {"C": args["C"]}, delta_softplus=True, **rest)
        assert torch.equal(alone["C"], every["C"])

    def test_double_is_refused(self):
        args = draw(1, 3, 4, 5)
        with pytest.raises(ValueError, match=r"u is float64.*use backend='cpu'"):
            scan_triton(**(args | {"u": args["u"].double()}))

    @pytest.mark.parametrize("options", [(), OPTIONS])
    def test_operators_can_be_traced(self, options):
        args = draw(1, 3, 2, 3, options=options)
        row = {n: None if t is None or t.ndim < 3 else t.transpose(1, 2).contiguous() for n, t in args.items()}
        call = [row["u"], row["delta"], args["A"].t().contiguous(), row["B"], row["C"], args["D"], row["z"]]
        call = [None if t is None else t.requires_grad_() for t in (*call, args["delta_bias"])]
        torch.library.opcheck(torch.ops.dinov2.selective_scan_triton.default, (*call, True, True))

    @pytest.mark.skipif(not GPU, reason="the interpreter runs programs one after another")
    def test_results_repeat_exactly(self):
        args = draw(64, 384, 16, 257, torch.bfloat16)
        first, second = (with_gradients(scan_triton, args, delta_softplus=True) for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)
