"""The mixers in float64, token by token, from their papers' equations; differentiable, so that gradients compare too.

Each takes one sample (L, D) and the parameters of the layer by name.
"""

import torch
from torch import Tensor

Parameters = dict[str, Tensor]


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def depthwise(x: Tensor, weight: Tensor, left: int, bias: Tensor | None = None) -> Tensor:
    """out[t, c] = sum_k weight[c, 0, k] x[t - left + k, c] + bias[c], zero outside, for x (L, C)."""
    rows = []
    for t in range(len(x)):
        row = torch.zeros_like(x[0]) if bias is None else bias
        for k in range(weight.shape[-1]):
            if 0 <= t - left + k < len(x):
                row = row + weight[:, 0, k] * x[t - left + k]
        rows.append(row)
    return torch.stack(rows)


def mamba_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The recurrence of Mamba for u, delta (L, C), A (C, N), B, C (L, N), D (C,)."""
    h, rows = torch.zeros_like(A), []
    for t in range(len(u)):
        h = (delta[t][:, None] * A).exp() * h + (delta[t] * u[t])[:, None] * B[t]
        rows.append(h @ C[t] + D * u[t])
    return torch.stack(rows)


def selective(x: Tensor, p: Parameters, prefix: str = "") -> Tensor:
    """The scan of x (L, C) whose step sizes, B and C come from x by the projections under `prefix`."""
    rank, states = p[f"{prefix}dt_proj.weight"].shape[1], p[f"{prefix}scan.A_log"].shape[1]
    raw, B, C = (x @ p[f"{prefix}x_proj.weight"].T).split([rank, states, states], dim=1)
    delta = softplus(raw @ p[f"{prefix}dt_proj.weight"].T + p[f"{prefix}scan.dt_bias"])
    return mamba_scan(x, delta, -p[f"{prefix}scan.A_log"].exp(), B, C, p[f"{prefix}scan.D"])


def mamba_vision(sample: Tensor, p: Parameters) -> Tensor:
    """Equation 6 of arXiv 2407.08083: concat(scan(silu(conv(x))), silu(conv(z))) through the output projection."""
    u, z = (sample @ p["in_proj.weight"].T).chunk(2, dim=1)
    left = (p["conv1d_x.weight"].shape[-1] - 1) // 2
    u = silu(depthwise(u, p["conv1d_x.weight"], left))
    z = silu(depthwise(z, p["conv1d_z.weight"], left))
    return torch.cat([selective(u, p), z], dim=1) @ p["out_proj.weight"].T


def bidirectional_mamba(sample: Tensor, p: Parameters) -> Tensor:
    """Algorithm 1 of arXiv 2401.09417 with the two directions averaged."""
    u, z = (sample @ p["in_proj.weight"].T).chunk(2, dim=1)

    def direction(u: Tensor, z: Tensor, prefix: str) -> Tensor:
        weight = p[f"{prefix}conv1d.weight"]
        u = silu(depthwise(u, weight, weight.shape[-1] - 1, p[f"{prefix}conv1d.bias"]))
        return selective(u, p, prefix) * silu(z)

    ahead = direction(u, z, "forward_direction.")
    back = direction(u.flip(0), z.flip(0), "backward_direction.").flip(0)
    return (ahead + back) / 2 @ p["out_proj.weight"].T


def _hydra_parts(sample: Tensor, p: Parameters) -> tuple[Tensor, ...]:
    """Return z, x, steps (L, 2H), and B and C of both directions, all for L tokens."""
    inner, heads = p["norm.weight"].shape[0], p["scan.D"].shape[0]
    mixed_channels, width = p["conv1d.weight"].shape[0], p["conv1d.weight"].shape[-1]
    states = (mixed_channels - inner) // 4
    z, mixed, dt = (sample @ p["in_proj.weight"].T).split([inner, mixed_channels, 2 * heads], dim=1)
    mixed = silu(depthwise(mixed, p["conv1d.weight"], width // 2, p["conv1d.bias"]))
    x, *projections = mixed.split([inner, *[states] * 4], dim=1)
    return z, x, softplus(dt + p["scan.dt_bias"].repeat(2)), *projections


def _hydra_output(y: Tensor, z: Tensor, p: Parameters) -> Tensor:
    normed = y / (y.square().mean(1, keepdim=True) + 1e-5).sqrt() * p["norm.weight"]
    return normed * silu(z) @ p["out_proj.weight"].T


def hydra_by_recurrence(sample: Tensor, p: Parameters) -> Tensor:
    """Section 3.3 of arXiv 2407.09941: shift(SS(x)) + flip(shift(SS(flip(x)))) + D x, with a state a head."""
    z, x, steps, B_ahead, C_ahead, B_back, C_back = _hydra_parts(sample, p)
    heads = p["scan.D"].shape[0]
    A = -p["scan.A_log"].exp()

    def shifted_scan(x: Tensor, step: Tensor, B: Tensor, C: Tensor) -> Tensor:
        state = torch.zeros(heads, x.shape[2], B.shape[1], dtype=x.dtype)
        rows = [torch.zeros_like(x[0])]
        for t in range(len(x) - 1):
            state = (step[t] * A).exp()[:, None, None] * state
            state = state + step[t][:, None, None] * x[t][:, :, None] * B[t]
            rows.append(state @ C[t])
        return torch.stack(rows)  # (L, H, P)

    by_head = x.unflatten(1, (heads, -1))
    y = shifted_scan(by_head, steps[:, :heads], B_ahead, C_ahead)
    y = y + shifted_scan(by_head.flip(0), steps[:, heads:].flip(0), B_back.flip(0), C_back.flip(0)).flip(0)
    y = y + (x @ p["fc_D.weight"].T + p["scan.D"])[:, :, None] * by_head
    return _hydra_output(y.flatten(1), z, p)


def hydra_by_matrix(sample: Tensor, p: Parameters) -> Tensor:
    """Definition 2.1 of arXiv 2407.09941, materialised: a quasiseparable matrix a head, times x.

    Below the diagonal stand the entries of the forward scan, above it those of the backward scan, on it the diagonal
    term; the off-diagonal ones are those of the token before, for the scans are shifted.
    """
    z, x, steps, B_ahead, C_ahead, B_back, C_back = _hydra_parts(sample, p)
    heads, length = p["scan.D"].shape[0], len(x)
    diagonal = x @ p["fc_D.weight"].T + p["scan.D"]  # (L, H)
    outputs = []
    for h in range(heads):
        a = -p["scan.A_log"][h].exp()
        ahead, back = steps[:, h], steps[:, heads + h]
        rows = []
        for i in range(length):
            below = [C_ahead[i - 1] @ B_ahead[j] * ahead[j] * (a * ahead[j + 1 : i].sum()).exp() for j in range(i)]
            above = [
                C_back[i + 1] @ B_back[j] * back[j] * (a * back[i + 1 : j].sum()).exp() for j in range(i + 1, length)
            ]
            rows.append(torch.stack([*below, diagonal[i, h], *above]))
        outputs.append(torch.stack(rows) @ x.unflatten(1, (heads, -1))[:, h])
    return _hydra_output(torch.cat(outputs, dim=1), z, p)


def einfft(sample: Tensor, p: Parameters, shrinkage: float = 0.01) -> Tensor:
    """Section 3.1 of arXiv 2403.15360 with explicit Fourier matrices over tokens and blocks, in complex arithmetic."""
    blocks = p["complex_weight_1"].shape[1]
    over_tokens, over_blocks = fourier_matrix(len(sample)), fourier_matrix(blocks)
    p = {name: torch.complex(tensor[0], tensor[1]) for name, tensor in p.items()}
    grouped = sample.unflatten(1, (blocks, -1)).to(torch.complex128)
    spectrum = torch.einsum("st,uk,tki->sui", over_tokens, over_blocks, grouped)
    hidden = torch.einsum("sui,uio->suo", spectrum, p["complex_weight_1"]) + p["complex_bias_1"]
    hidden = torch.complex(hidden.real.clamp(min=0), hidden.imag.clamp(min=0))
    out = torch.einsum("sui,uio->suo", hidden, p["complex_weight_2"]) + p["complex_bias_2"]
    out = torch.complex(_shrink(out.real, shrinkage), _shrink(out.imag, shrinkage))
    back = torch.einsum("ts,ku,sui->tki", over_tokens.conj().T, over_blocks.conj().T, out)
    return back.real.flatten(1)


def fourier_matrix(size: int) -> Tensor:
    """The unitary discrete Fourier matrix (size, size)."""
    index = torch.arange(size, dtype=torch.float64)
    angle = -2 * torch.pi * index[:, None] * index / size
    return torch.complex(angle.cos(), angle.sin()) / size**0.5


def _shrink(x: Tensor, by: float) -> Tensor:
    return x.sign() * (x.abs() - by).clamp(min=0)
