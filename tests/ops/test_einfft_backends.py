"""Every backend of EinFFT against Fourier matrices and complex arithmetic in float64."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scan_loops import assert_near, usable, with_gradients

from dinov2.ops import einfft
from dinov2.ops.dispatch import usable_backends
from dinov2.ops.einfft.dft import half_spectrum_matrix

BACKENDS = usable("einfft")


def draw(batch, length, size, seed=0, scale=0.5):
    g = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(batch, length, 4 * size, generator=g),
        "weight_1": scale * torch.randn(2, 4, size, size, generator=g),
        "bias_1": scale * torch.randn(2, 4, size, generator=g),
        "weight_2": scale * torch.randn(2, 4, size, size, generator=g),
        "bias_2": scale * torch.randn(2, 4, size, generator=g),
    }


def fourier(n):
    grid = torch.outer(torch.arange(n), torch.arange(n)).double()
    return torch.exp(-2j * torch.pi * grid / n) / n**0.5


def kink_distance(x, weight_1, bias_1, weight_2, bias_2, shrinkage):
    """Return how near the closest entry is to a kink of relu or softshrink, where rounding decides on its gradient."""
    distances = []
    definition(x, weight_1, bias_1, weight_2, bias_2, shrinkage, distances)
    return min(distances)


def definition(x, weight_1, bias_1, weight_2, bias_2, shrinkage=0.01, distances=None):
    tokens, blocks = fourier(x.shape[1]), fourier(4)
    w1, b1, w2, b2 = (torch.complex(*t.double()) for t in (weight_1, bias_1, weight_2, bias_2))
    spectrum = torch.einsum("st,uk,btki->bsui", tokens, blocks, x.double().unflatten(-1, (4, -1)).to(tokens.dtype))
    hidden = torch.einsum("bsui,uij->bsuj", spectrum, w1) + b1
    hidden = torch.complex(hidden.real.clamp(min=0), hidden.imag.clamp(min=0))
    result = torch.einsum("bsui,uij->bsuj", hidden, w2) + b2

    if distances is not None:
        before_relu = torch.einsum("bsui,uij->bsuj", spectrum, w1) + b1
        distances += [float(torch.view_as_real(before_relu).abs().min())]
        distances += [float((torch.view_as_real(result).abs() - shrinkage).abs().min())]

    def shrink(t):
        return t.sign() * (t.abs() - shrinkage).clamp(min=0)

    shrunk = torch.complex(shrink(result.real), shrink(result.imag))
    return torch.einsum("ts,ku,bsui->btki", tokens.conj().T, blocks.conj().T, shrunk).real.flatten(2)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 9), st.integers(0, 99))
def test_any_shape(backend, batch, length, size, seed):
    args = draw(batch, length, size, seed)
    assume(kink_distance(**args, shrinkage=0.2) > 1e-5)
    found = with_gradients(einfft, args, shrinkage=0.2, backend=backend)
    exact = with_gradients(definition, {n: t.double() for n, t in args.items()}, shrinkage=0.2)
    assert_near(found["y"], exact["y"], "y")
    for name in args:
        difference = (found[name].double() - exact[name]).norm()
        assert difference <= 1e-3 * exact[name].norm() + 1e-12, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_gradients_it_is_the_same(backend):
    args = draw(2, 9, 5)
    with torch.no_grad():
        alone = einfft(**args, backend=backend)
    assert torch.equal(alone, with_gradients(einfft, args, backend=backend)["y"])


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "native"])
def test_gradcheck(backend):
    args = [t.double().requires_grad_() for t in draw(2, 5, 2).values()]
    assert torch.autograd.gradcheck(lambda *tensors: einfft(*tensors, 0.01, backend=backend), args)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_a_number_stays_visible(backend):
    """Softshrink and relu must not turn NaN into 0, or a diverged run would go on."""
    args = draw(1, 5, 2)
    args["x"][0, 2, 3] = float("nan")
    assert einfft(**args, backend=backend).isnan().any()


def test_long_sequences_are_transformed_fast():
    args = draw(1, 1101, 1)
    assert usable_backends("einfft", size=1101) == ["reference"]
    assert torch.equal(einfft(**args), einfft(**args, backend="reference"))
    with pytest.raises(ValueError, match="a Fourier transform is faster than a matrix product for 1101 tokens"):
        einfft(**args, backend="products")


@pytest.mark.parametrize("length", [1, 2, 3, 8, 257])
def test_the_half_spectrum_is_the_fourier_transform(length):
    matrix = half_spectrum_matrix(length, torch.float64, torch.device("cpu"))
    x = torch.randn(length, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.fft.rfft(x, norm="ortho")
    found = matrix @ x
    torch.testing.assert_close(found[: length // 2 + 1], expected.real, rtol=0, atol=1e-12)
    torch.testing.assert_close(found[length // 2 + 1 :], expected.imag[1 : (length + 1) // 2], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(2, 8)}, r"x has shape \(2, 8\); expected a non-empty \(batch, length, multiple of 4\)"),
        ({"x": torch.ones(2, 3, 6)}, r"x has shape \(2, 3, 6\)"),
        ({"x": torch.ones(2, 0, 8)}, r"x has shape \(2, 0, 8\); expected a non-empty"),
        ({"weight_1": torch.ones(2, 4, 2, 3)}, r"weight_1 has shape \(2, 4, 2, 3\); expected \(2, 4, 2, 2\)"),
        ({"bias_2": torch.ones(4, 2)}, r"bias_2 has shape \(4, 2\); expected \(2, 4, 2\)"),
        ({"weight_2": torch.ones(2, 4, 2, 2, dtype=torch.complex64)}, r"weight_2 .* has dtype torch.complex64"),
        ({"shrinkage": -0.1}, r"shrinkage is -0.1; expected 0 or more"),
        ({"bias_1": torch.ones(2, 4, 2, device="meta")}, r"bias_1 \(2, 4, 2\) is on meta but x is on cpu"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=f"einfft: {message}"):
        einfft(**(draw(2, 3, 2) | change))
