"""The Hydra mixer (arXiv 2407.09941): a quasiseparable matrix as two shifted state-space scans and a diagonal."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.layers.linear import Linear
from dinov2.layers.scan import SMALLEST_STEP, decay_rate, inverse_softplus_of_log_uniform
from dinov2.ops import conv_silu, ssd


class HydraScan(nn.Module):
    """The scan's parameters, kept in float32: A = -exp(A_log) and D per head, the bias of dt shared by both ways."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.zeros(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.dt_bias = nn.Parameter(inverse_softplus_of_log_uniform(heads))

    def forward(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Scan x (B, L, H, P) with raw step sizes dt (B, L, H), B and C (B, L, 1, N); also return D + `own` (B, L, H).

        The sum is formed here because under FSDP2 a unit's parameters are whole only while its own forward runs.
        """
        step = F.softplus(dt.float() + self.dt_bias.float()).clamp(min=SMALLEST_STEP)
        return ssd(x, step, -decay_rate(self.A_log), B, C), own.float() + self.D.float()


class Hydra(nn.Module):
    """Mix tokens (B, L, D) in both directions at once.

    Both directions share x, A and the bias of dt; each has its own dt, B and C. A token's own contribution comes only
    from the diagonal x * (W_D x + D), because the scans are shifted by one token.
    """

    def __init__(self, dim: int, d_state: int = 64, d_conv: int = 7, expand: int = 2, headdim: int = 64) -> None:
        super().__init__()
        inner = expand * dim
        if inner % headdim:
            raise ValueError(f"hydra: heads of {headdim} do not divide the inner width {expand} * {dim} = {inner}")
        self.heads, self.headdim, self.d_state, self.inner = inner // headdim, headdim, d_state, inner
        mixed = inner + 4 * d_state  # x, then B and C of both directions
        self.in_proj = Linear(dim, inner + mixed + 2 * self.heads, bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, d_conv, groups=mixed, bias=True)
        self.scan = HydraScan(self.heads)
        self.fc_D = Linear(inner, self.heads, bias=False)
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out_proj = Linear(inner, dim, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        """Mix tokens (B, L, D) -> (B, L, D)."""
        z, mixed, dt = self.in_proj(u).split([self.inner, self.conv1d.in_channels, 2 * self.heads], dim=-1)
        mixed = conv_silu(mixed, self.conv1d.weight, self.conv1d.bias, before=self.conv1d.kernel_size[0] // 2)
        x, ahead, back = mixed.split([self.inner, 2 * self.d_state, 2 * self.d_state], dim=-1)
        dt_ahead, dt_back = dt.chunk(2, dim=-1)
        heads = x.unflatten(-1, (self.heads, self.headdim))  # (B, L, H, P)

        B, C = torch.cat([ahead, back.flip(1)]).unsqueeze(2).chunk(2, dim=-1)  # each (2B, L, 1, N)
        steps = torch.cat([dt_ahead, dt_back.flip(1)])
        y, gain = self.scan(torch.cat([heads, heads.flip(1)]), steps, B, C, self.fc_D(x))  # gain (B, L, H)
        y = F.pad(y[:, :-1], (0, 0, 0, 0, 1, 0))  # a token's own input does not reach it through the scan
        forward_part, backward_part = y.unflatten(0, (2, -1))
        out = forward_part + backward_part.flip(1) + (heads * gain.unsqueeze(-1)).to(heads.dtype)
        return self.out_proj(self.norm(out.flatten(2)) * F.silu(z))
