"""The state-space mixers against slow float64 NumPy code written from their papers' definitions."""

import numpy as np
import pytest
import torch
from torch import nn

from dinov2.layers.hydra import Hydra
from dinov2.layers.mamba_vision import MambaVisionMixer
from dinov2.layers.scan import SelectiveScan
from dinov2.layers.vim import BidirectionalMamba

BATCH, LENGTH = 2, 11


def shaken(layer):
    """The layer in float64 with every parameter moved off its initial value, so that none can hide."""
    torch.manual_seed(0)
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def parameters(layer):
    return {name: tensor.detach().numpy() for name, tensor in layer.state_dict().items()}


def tokens(dim):
    return torch.randn(BATCH, LENGTH, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def silu(x):
    return x / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def depthwise(x, weight, left, bias=None):
    """out[t, c] = sum_k weight[c, k] x[t - left + k, c], zero outside, for x (L, C)."""
    out = np.zeros_like(x)
    for t in range(len(x)):
        for k in range(weight.shape[-1]):
            if 0 <= t - left + k < len(x):
                out[t] += weight[:, 0, k] * x[t - left + k]
    return out if bias is None else out + bias


def scan(u, delta, A, B, C, D):
    """The recurrence of Mamba for u, delta (L, C), A (C, N), B, C (L, N), D (C,)."""
    h = np.zeros_like(A)
    out = np.zeros_like(u)
    for t in range(len(u)):
        h = np.exp(delta[t][:, None] * A) * h + (delta[t] * u[t])[:, None] * B[t]
        out[t] = h @ C[t] + D * u[t]
    return out


def scan_of(x, p, prefix, rank, states):
    """The input-dependent scan of x (L, C) with the parameters under `prefix`."""
    projected = x @ p[f"{prefix}x_proj.weight"].T
    raw = projected[:, :rank] @ p[f"{prefix}dt_proj.weight"].T
    B, C = projected[:, rank : rank + states], projected[:, rank + states :]
    delta = softplus(raw + p[f"{prefix}scan.dt_bias"])
    return scan(x, delta, -np.exp(p[f"{prefix}scan.A_log"]), B, C, p[f"{prefix}scan.D"])


def test_mamba_vision():
    dim = 32
    layer, x = shaken(MambaVisionMixer(dim)), tokens(dim)
    p = parameters(layer)
    assert p["dt_proj.weight"].shape == (dim, dim // 16)
    expected = []
    for sample in x.numpy():
        both = sample @ p["in_proj.weight"].T
        u = silu(depthwise(both[:, :dim], p["conv1d_x.weight"], left=1))
        z = silu(depthwise(both[:, dim:], p["conv1d_z.weight"], left=1))
        y = scan_of(u, p, "", rank=2, states=16)
        expected.append(np.concatenate([y, z], axis=1) @ p["out_proj.weight"].T)
    np.testing.assert_allclose(layer(x).detach().numpy(), np.stack(expected), rtol=1e-5, atol=1e-6)


def test_bidirectional_mamba():
    dim, inner = 32, 64
    layer, x = shaken(BidirectionalMamba(dim)), tokens(dim)
    p = parameters(layer)

    def direction(u, z, prefix):
        u = silu(depthwise(u, p[f"{prefix}conv1d.weight"], left=3, bias=p[f"{prefix}conv1d.bias"]))
        return scan_of(u, p, prefix, rank=2, states=16) * silu(z)

    expected = []
    for sample in x.numpy():
        both = sample @ p["in_proj.weight"].T
        u, z = both[:, :inner], both[:, inner:]
        ahead = direction(u, z, "forward_direction.")
        back = direction(u[::-1], z[::-1], "backward_direction.")[::-1]
        expected.append((ahead + back) / 2 @ p["out_proj.weight"].T)
    np.testing.assert_allclose(layer(x).detach().numpy(), np.stack(expected), rtol=1e-5, atol=1e-6)


def test_hydra_is_a_quasiseparable_matrix():
    """Below the diagonal the forward scan's entries, above it the backward scan's, on it the diagonal term."""
    dim, inner, heads, states = 64, 128, 2, 64
    layer, x = shaken(Hydra(dim)), tokens(dim)
    p = parameters(layer)
    A = -np.exp(p["scan.A_log"])
    expected = []
    for sample in x.numpy():
        z, mixed, dt = np.split(sample @ p["in_proj.weight"].T, [inner, 2 * inner + 4 * states], axis=1)
        mixed = silu(depthwise(mixed, p["conv1d.weight"], left=3, bias=p["conv1d.bias"]))
        u, B_f, C_f, B_b, C_b = np.split(mixed, inner + states * np.arange(4), axis=1)
        steps = softplus(dt + np.tile(p["scan.dt_bias"], 2))
        y = np.zeros((LENGTH, inner))
        for h in range(heads):
            f, b = steps[:, h], steps[:, heads + h]
            matrix = np.zeros((LENGTH, LENGTH))
            for i in range(LENGTH):
                for j in range(i):  # what the token before i has seen
                    matrix[i, j] = C_f[i - 1] @ B_f[j] * f[j] * np.exp(A[h] * f[j + 1 : i].sum())
                for j in range(i + 1, LENGTH):
                    matrix[i, j] = C_b[i + 1] @ B_b[j] * b[j] * np.exp(A[h] * b[i + 1 : j].sum())
                matrix[i, i] = u[i] @ p["fc_D.weight"][h] + p["scan.D"][h]
            span = slice(64 * h, 64 * (h + 1))
            y[:, span] = matrix @ u[:, span]
        normed = y / np.sqrt((y**2).mean(1, keepdims=True) + 1e-5) * p["norm.weight"]
        expected.append(normed * silu(z) @ p["out_proj.weight"].T)
    np.testing.assert_allclose(layer(x).detach().numpy(), np.stack(expected), rtol=1e-5, atol=1e-6)


def test_hydra_refuses_a_width_that_its_heads_do_not_divide():
    with pytest.raises(ValueError, match=r"heads of 64 do not divide the inner width 2 \* 48 = 96"):
        Hydra(48)


@pytest.mark.parametrize("layer", [MambaVisionMixer(32), BidirectionalMamba(32)])
def test_scan_parameters_start_as_in_the_papers(layer):
    scans = [module for module in layer.modules() if isinstance(module, SelectiveScan)]
    assert scans
    for module in scans:
        expected = np.log(np.arange(1, 17))[None].repeat(len(module.D), 0)
        np.testing.assert_allclose(module.A_log.detach().numpy(), expected, rtol=1e-6)
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


@pytest.mark.parametrize("layer", [MambaVisionMixer(64), BidirectionalMamba(64), Hydra(64)])
def test_scans_keep_float32_under_autocast(layer):
    layer = layer.float()
    x = tokens(64).float()
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    assert (low.float() - expected).abs().max() < 0.05 * expected.abs().max()
    low.float().sum().backward()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in layer.parameters())
