"""The state-space mixers against slow float64 code written from their papers' definitions, forward and gradients."""

import copy

import pytest
import slow_mixers
import torch
from torch import nn

from dinov2.layers.hydra import Hydra
from dinov2.layers.mamba_vision import MambaVisionMixer
from dinov2.layers.scan import SelectiveScan
from dinov2.layers.vim import BidirectionalMamba

MIXERS = {
    "mamba_vision": (lambda: MambaVisionMixer(32), slow_mixers.mamba_vision),
    "mamba_vision of an odd width": (lambda: MambaVisionMixer(21, d_state=5), slow_mixers.mamba_vision),
    "vim": (lambda: BidirectionalMamba(32), slow_mixers.bidirectional_mamba),
    "vim of an odd width": (lambda: BidirectionalMamba(21, d_state=5), slow_mixers.bidirectional_mamba),
    "hydra by its recurrence": (lambda: Hydra(64), slow_mixers.hydra_by_recurrence),
    "hydra by its matrix": (lambda: Hydra(64), slow_mixers.hydra_by_matrix),
    "hydra of small heads": (lambda: Hydra(21, d_state=5, d_conv=3, headdim=14), slow_mixers.hydra_by_matrix),
}
LAYERS = {"mamba_vision": MambaVisionMixer, "vim": BidirectionalMamba, "hydra": Hydra}


def shaken(layer, seed=0):
    """The layer with every parameter moved off its initial value, so that none can hide."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=g))
    return layer


def tokens(length, width, batch=2, seed=1):
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed))


def relative_error(actual, exact):
    return ((actual.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-12)).item()


@pytest.mark.parametrize("length", [1, 2, 11, 50])
@pytest.mark.parametrize("mixer", MIXERS)
def test_outputs_and_gradients_are_those_of_the_paper(mixer, length):
    make, slow = MIXERS[mixer]
    torch.manual_seed(0)
    layer = shaken(make())
    x = tokens(length, layer.in_proj.in_features).requires_grad_()
    weight = tokens(length, x.shape[2], seed=2)
    y = layer(x)
    (y * weight).sum().backward()

    exact_x = x.detach().double().requires_grad_()
    leaves = {name: t.detach().double().requires_grad_() for name, t in layer.named_parameters()}
    expected = torch.stack([slow(sample, leaves) for sample in exact_x])
    (expected * weight).sum().backward()
    assert relative_error(y, expected) < 2e-5
    assert relative_error(x.grad, exact_x.grad) < 1e-4
    for name, parameter in layer.named_parameters():
        exact = leaves[name].grad
        if exact is None or not exact.any():  # with one or two tokens a state is not carried on, or not at all
            assert length <= 2
            assert parameter.grad is None or not parameter.grad.any()
            continue
        assert relative_error(parameter.grad, exact) < 1e-4, name


def test_exchanging_the_directions_of_vim_flips_the_sequence():
    torch.manual_seed(0)
    layer = shaken(BidirectionalMamba(32))
    exchanged = copy.deepcopy(layer)
    exchanged.forward_direction, exchanged.backward_direction = (
        exchanged.backward_direction,
        exchanged.forward_direction,
    )
    x = tokens(13, 32)
    torch.testing.assert_close(exchanged(x), layer(x.flip(1)).flip(1), rtol=1e-5, atol=1e-5)
    assert (exchanged(x) - layer(x)).abs().max() > 0.01


def test_exchanging_the_directions_of_hydra_flips_the_sequence():
    """The convolution, which both directions share, is mirrored."""
    torch.manual_seed(0)
    layer = shaken(Hydra(64))
    inner, states, heads = layer.inner, layer.d_state, layer.heads
    exchanged = copy.deepcopy(layer)
    ahead = torch.arange(inner, inner + 2 * states)
    mixed = torch.cat([torch.arange(inner), ahead + 2 * states, ahead])  # x, then B and C of the other direction
    dt = torch.arange(2 * heads).roll(heads)
    rows = torch.cat([torch.arange(inner), inner + mixed, inner + len(mixed) + dt])
    with torch.no_grad():
        exchanged.in_proj.weight.copy_(layer.in_proj.weight[rows])
        exchanged.conv1d.weight.copy_(layer.conv1d.weight[mixed].flip(-1))
        exchanged.conv1d.bias.copy_(layer.conv1d.bias[mixed])
    x = tokens(13, 64)
    torch.testing.assert_close(exchanged(x), layer(x.flip(1)).flip(1), rtol=1e-4, atol=1e-4)
    assert (exchanged(x) - layer(x)).abs().max() > 0.01


@pytest.mark.parametrize("name", LAYERS)
def test_tokens_in_any_memory_layout(name):
    torch.manual_seed(0)
    layer, x = shaken(LAYERS[name](64)), tokens(9, 64)
    strided = x.repeat_interleave(2, dim=1)[:, ::2]
    transposed = x.transpose(1, 2).contiguous().transpose(1, 2)
    for view in (strided, transposed):
        assert not view.is_contiguous()
        torch.testing.assert_close(layer(view), layer(x), rtol=1e-5, atol=1e-5)


def test_hydra_refuses_a_width_that_its_heads_do_not_divide():
    with pytest.raises(ValueError, match=r"heads of 64 do not divide the inner width 2 \* 48 = 96"):
        Hydra(48)


@pytest.mark.parametrize("layer", [MambaVisionMixer(32), BidirectionalMamba(32)])
def test_scan_parameters_start_as_in_the_papers(layer):
    scans = [module for module in layer.modules() if isinstance(module, SelectiveScan)]
    assert scans
    for module in scans:
        expected = torch.arange(1, 17).log().expand(len(module.D), 16)
        torch.testing.assert_close(module.A_log.detach(), expected, rtol=1e-6, atol=0)
        assert (module.D == 1).all()
        assert (module.dt_bias == 0).all()


def test_hydra_decay_starts_at_one_per_head():
    layer = Hydra(64)
    assert torch.equal(layer.scan.A_log.exp(), torch.ones(2))
    assert torch.equal(layer.scan.D, torch.ones(2))
    assert layer.conv1d.kernel_size == (7,)
    assert layer.conv1d.bias is not None


@pytest.mark.parametrize("make", [MambaVisionMixer, BidirectionalMamba])
def test_dt_init_mamba_spreads_the_step_sizes(make):
    torch.manual_seed(0)
    layer = make(256, dt_init="mamba")
    for module in layer.modules():
        if isinstance(module, SelectiveScan):
            steps = nn.functional.softplus(module.dt_bias)
            assert steps.min() >= 1e-3 * 0.99
            assert steps.max() <= 0.1 * 1.01
            # Log-uniform: as many below the geometric mean 0.01 as above.
            assert 0.3 < (steps < 0.01).float().mean() < 0.7
    weight = next(t for n, t in layer.named_parameters() if n.endswith("dt_proj.weight"))
    assert weight.abs().max() <= 16**-0.5
    assert weight.std().item() == pytest.approx(16**-0.5 / 3**0.5, rel=0.05)


@pytest.mark.parametrize("name", LAYERS)
def test_scans_keep_float32_under_autocast(name):
    torch.manual_seed(0)
    layer, x = LAYERS[name](64), tokens(11, 64)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    assert (low.float() - expected).abs().max() < 0.05 * expected.abs().max()
    low.float().sum().backward()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in layer.parameters())
