"""EinFFT against explicit discrete Fourier matrices and complex arithmetic, forward and gradients."""

import pytest
import slow_mixers
import torch

from dinov2.layers.einfft import EinFFT

HALF_ULP = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def make(dim=24, scale=0.3, **options):
    torch.manual_seed(0)
    return EinFFT(dim, init_scale=scale, **options)


def tokens(length, dim=24, batch=2, dtype=torch.float32):
    return torch.randn(batch, length, dim, generator=torch.Generator().manual_seed(1)).to(dtype)


def exact_results(layer, x, weight):
    """Return the output, the gradient of x and those of the parameters in float64."""
    x = x.detach().double().requires_grad_()
    leaves = {name: t.detach().double().requires_grad_() for name, t in layer.named_parameters()}
    y = torch.stack([slow_mixers.einfft(sample, leaves, layer.shrinkage) for sample in x])
    (y * weight.double()).sum().backward()
    return y.detach(), x.grad, {name: leaf.grad for name, leaf in leaves.items()}


def relative_error(actual, exact):
    return ((actual.double() - exact).abs().max() / exact.abs().max()).item()


@pytest.mark.parametrize("dtype", HALF_ULP, ids=str)
@pytest.mark.parametrize("length", [1, 2, 9, 50, 257])
@pytest.mark.parametrize("scale", [0.02, 0.3])  # small: softshrink bites; large: it hardly does
def test_outputs_and_gradients_are_those_of_the_definition(scale, length, dtype):
    layer, x = make(scale=scale), tokens(length, dtype=dtype).requires_grad_()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).bfloat16().to(dtype)
    y = layer(x)
    (y * weight).sum().backward()
    expected, x_grad, grads = exact_results(layer, x, weight)
    assert y.dtype == x.grad.dtype == dtype
    assert all(parameter.dtype == torch.float32 for parameter in layer.parameters())
    assert (expected != 0).any()
    assert relative_error(y, expected) < 1e-5 + HALF_ULP[dtype]
    assert relative_error(x.grad, x_grad) < 1e-4 + HALF_ULP[dtype]
    for name, parameter in layer.named_parameters():
        assert relative_error(parameter.grad, grads[name]) < 1e-4, name


@pytest.mark.parametrize("dim", [4, 12, 20, 68])
def test_any_width_that_has_four_blocks(dim):
    layer, x = make(dim), tokens(11, dim)
    expected, *_ = exact_results(layer, x, torch.ones_like(x))
    assert relative_error(layer(x), expected) < 1e-5


def test_the_threshold_of_the_shrinkage_is_obeyed():
    x = tokens(11)
    for shrinkage in (0.0, 0.5):
        layer = make(shrinkage=shrinkage)
        expected, *_ = exact_results(layer, x, torch.ones_like(x))
        assert relative_error(layer(x), expected) < 1e-5
    assert not make(shrinkage=1e3)(x).any()


def test_samples_do_not_mix_and_all_tokens_and_channels_do():
    layer, x = make(), tokens(9).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x)[0, 4, 5], x)
    assert (gradient[0] != 0).all()
    assert not gradient[1].any()


def test_tokens_in_any_memory_layout():
    layer, x = make(), tokens(9)
    strided = x.repeat_interleave(2, dim=1)[:, ::2]
    transposed = x.transpose(1, 2).contiguous().transpose(1, 2)
    for view in (strided, transposed):
        assert not view.is_contiguous()
        torch.testing.assert_close(layer(view), layer(x), rtol=1e-5, atol=1e-6)


def test_double_precision_is_kept():
    layer, x = make(scale=0.5).double(), tokens(9).double()
    expected, *_ = exact_results(layer, x, torch.ones_like(x))
    y = layer(x)
    assert y.dtype == torch.float64
    assert relative_error(y, expected) < 1e-12


def test_autocast_is_switched_off_inside():
    layer, x = make(), tokens(9)
    outside = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer(x)
        low = layer(x.bfloat16())
    assert torch.equal(inside, outside)
    assert low.dtype == torch.bfloat16
    expected, *_ = exact_results(layer, x.bfloat16(), torch.ones_like(x))
    assert relative_error(low, expected) < 1e-5 + HALF_ULP[torch.bfloat16]


@pytest.mark.parametrize("length", [1, 3])
def test_gradcheck(length):
    layer = make(8, scale=0.5).double()
    x = tokens(length, 8, batch=1).double().requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *layer.parameters()))


def test_blocks_must_divide_the_width():
    with pytest.raises(ValueError, match="4 blocks do not divide the width 30"):
        EinFFT(30)
