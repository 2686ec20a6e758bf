"""Every state of a scan decays, 0 < exp(delta A) < 1 after rounding, whatever the optimiser does to its parameters."""

import decay_probe
import pytest
import torch

from dinov2.layers.hydra import Hydra
from dinov2.layers.mamba_vision import MambaVisionMixer
from dinov2.layers.vim import BidirectionalMamba
from dinov2.models import build_backbone
from dinov2.ops import selective_scan, ssd

LAYERS = {"mamba_vision": MambaVisionMixer, "vim": BidirectionalMamba, "hydra": Hydra}


@pytest.mark.parametrize(
    ("name", "lr", "depth", "low"),
    [
        ("vim_einfft", 0.1, 2, False),
        ("mvhybrid", 0.1, 2, False),
        ("mvhybrid", 0.3, 2, False),
        ("hydra_einfft", 0.1, 2, False),
        ("hydra_einfft", 1.0, 2, False),
        ("hydra_hybrid", 1.0, 2, False),
        ("vim_einfft", 0.1, 1, True),
        ("mvhybrid", 0.1, 2, True),
        ("hydra_einfft", 0.1, 1, True),
    ],
)
def test_every_state_decays_after_200_steps_with_a_large_learning_rate(name, lr, depth, low):
    """The learning rates are 40 to 400 times the one of pretraining; `low` is autocast to bfloat16.

    Vim's outputs are products of so many of its weights that at larger rates they reach 1e20. The next norm squares
    them, which float32 cannot hold; in float64 all stays finite.
    """
    torch.manual_seed(0)
    model = build_backbone(name, embed_dim=32, num_heads=2, depth=depth, img_size=32, patch_size=8)
    start = [scan.A_log.detach().clone() for scan in decay_probe.scans_of(model)]
    x, target = torch.randn(4, 3, 32, 32), torch.randn(4, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(200):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = (model(x) - target).square().mean()
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = [(scan.A_log - first).abs().max() for scan, first in zip(decay_probe.scans_of(model), start, strict=True)]
    assert min(moved) > 0.01

    with decay_probe.recorded_calls() as calls, torch.autocast("cpu", torch.bfloat16, enabled=low):
        assert torch.isfinite(model(x)).all()
    assert len(calls) == len(start)
    decay_probe.assert_every_state_decays(calls)


@pytest.mark.parametrize("bias", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("log", [-200.0, -20.0, 20.0, 200.0])
@pytest.mark.parametrize("name", LAYERS)
def test_every_state_decays_for_extreme_parameters(name, log, bias):
    torch.manual_seed(0)
    layer = LAYERS[name](32)
    for scan in decay_probe.scans_of(layer):
        scan.A_log.data += log
        scan.dt_bias.data += bias
    with decay_probe.recorded_calls() as calls:
        y = layer(torch.randn(2, 5, 32))
    assert torch.isfinite(y).all()
    y.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)
    decay_probe.assert_every_state_decays(calls)


@pytest.mark.parametrize(("decay", "gone", "kept"), [(1e-9, 0, 1), (1e-5, 0, 0), (1.0, 0, 0), (80.0, 0, 0)])
def test_the_probe_sees_a_decay_that_rounds_to_one(decay, gone, kept):
    calls = [
        decay_probe.Call("selective_scan", torch.ones(1, 1, 1), torch.tensor([[-decay]]), None, False),
        decay_probe.Call("ssd", torch.ones(1, 1, 1), torch.tensor([-decay]), None, False),
    ]
    for call in calls:
        before, after = decay_probe.states_around_a_step(call, "reference")
        assert ((after <= 0).sum(), (after >= before).sum()) == (gone, kept)
        exact = torch.exp(torch.tensor(-decay, dtype=torch.float64))
        torch.testing.assert_close((after / before).double().flatten()[0], exact, rtol=1e-6, atol=0)


def test_the_operators_themselves_take_any_real_a():
    """A clamp belongs to the layers: a growing state is a valid scan."""
    ones = torch.ones(1, 1, 3)
    y = selective_scan(torch.tensor([[[1.0, 0, 0]]]), ones, torch.tensor([[1.0]]), ones, ones)
    torch.testing.assert_close(y[0, 0], torch.exp(torch.arange(3.0)))
    x = torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1)
    y = ssd(x, torch.ones(1, 3, 1), torch.tensor([1.0]), torch.ones(1, 3, 1, 1), torch.ones(1, 3, 1, 1))
    torch.testing.assert_close(y.flatten(), torch.exp(torch.arange(3.0)))
