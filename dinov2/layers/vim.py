"""The bidirectional Mamba mixer of Vision Mamba (arXiv 2401.09417, version 2 with the two directions averaged)."""

import math

from torch import Tensor, nn

from dinov2.layers.linear import Linear
from dinov2.layers.scan import DtInit, SelectiveScan
from dinov2.ops import conv_silu


class MambaDirection(nn.Module):
    """One direction: causal convolution, SiLU, selective scan, gate."""

    def __init__(self, channels: int, dt_rank: int, d_state: int, d_conv: int, dt_init: DtInit) -> None:
        super().__init__()
        self.dt_rank, self.d_state = dt_rank, d_state
        self.conv1d = nn.Conv1d(channels, channels, d_conv, groups=channels, bias=True)
        self.x_proj = Linear(channels, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = Linear(dt_rank, channels, bias=False)  # its bias is scan.dt_bias
        self.scan = SelectiveScan(channels, d_state, dt_init)
        if dt_init == "mamba":
            nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Scan x (B, L, E) from first to last token and gate it by silu(z)."""
        x = conv_silu(x, self.conv1d.weight, self.conv1d.bias, before=self.conv1d.kernel_size[0] - 1)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return self.scan(x, self.dt_proj(dt), B, C, z)


class BidirectionalMamba(nn.Module):
    """Mix tokens (B, L, D) by the mean of a forward and a backward Mamba, each with its own parameters."""

    def __init__(
        self, dim: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, dt_init: DtInit = "published"
    ) -> None:
        super().__init__()
        inner, dt_rank = expand * dim, math.ceil(dim / 16)
        self.in_proj = Linear(dim, 2 * inner, bias=False)
        self.forward_direction = MambaDirection(inner, dt_rank, d_state, d_conv, dt_init)
        self.backward_direction = MambaDirection(inner, dt_rank, d_state, d_conv, dt_init)
        self.out_proj = Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, L, D) -> (B, L, D)."""
        x, z = self.in_proj(x).chunk(2, dim=-1)  # each (B, L, E)
        ahead = self.forward_direction(x, z)
        back = self.backward_direction(x.flip(1), z.flip(1)).flip(1)
        return self.out_proj((ahead + back) / 2)
