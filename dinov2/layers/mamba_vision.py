"""The MambaVision mixer (arXiv 2407.08083, section 3.2) in the form of MVHybrid.

Input projection to two branches of D channels; both pass a short 'same' convolution and SiLU, one also a selective
scan; the concatenation is projected back. The convolution sees one token back and two ahead; the scan is causal.
"""

import math

import torch
from torch import Tensor, nn

from dinov2.layers.linear import Linear
from dinov2.layers.scan import DtInit, SelectiveScan
from dinov2.ops import conv_silu


class MambaVisionMixer(nn.Module):
    """Mix tokens (B, L, D) with a selective scan on one branch and a convolution on the other."""

    def __init__(self, dim: int, d_state: int = 16, d_conv: int = 4, dt_init: DtInit = "published") -> None:
        super().__init__()
        self.dt_rank = math.ceil(dim / 16)
        self.d_state = d_state
        self.in_proj = Linear(dim, 2 * dim, bias=False)
        self.conv1d_x = nn.Conv1d(dim, dim, d_conv, groups=dim, bias=False)
        self.conv1d_z = nn.Conv1d(dim, dim, d_conv, groups=dim, bias=False)
        self.x_proj = Linear(dim, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = Linear(self.dt_rank, dim, bias=False)  # its bias is scan.dt_bias, added once
        self.scan = SelectiveScan(dim, d_state, dt_init)
        self.out_proj = Linear(2 * dim, dim, bias=False)
        if dt_init == "mamba":
            nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, L, D) -> (B, L, D)."""
        x, z = self.in_proj(x).chunk(2, dim=-1)  # each (B, L, D)
        x, z = _same_conv(x, self.conv1d_x), _same_conv(z, self.conv1d_z)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        y = self.scan(x, self.dt_proj(dt), B, C)
        return self.out_proj(torch.cat([y, z], dim=-1))


def _same_conv(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Convolve (B, L, D) so that L stays, then SiLU; an even width sees one token further ahead than back."""
    return conv_silu(x, conv.weight, conv.bias, before=(conv.kernel_size[0] - 1) // 2)
