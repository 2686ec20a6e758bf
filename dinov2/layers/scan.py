"""The parameters of a selective scan, kept in float32 whatever the precision of the layers around them."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from dinov2.ops import selective_scan

DtInit = Literal["published", "mamba"]

# Bounds that keep every eigenvalue exp(-delta rate) of a discretised system below 1 in float32 and its rate finite,
# whatever the optimiser does. exp(-2^-20), the largest, is sixteen numbers below 1, four times further than a GPU's
# approximate exp2 may be wrong (2^-22); steps start at 1e-4 or above.
RATES = (2.0**-6, 2.0**12)
SMALLEST_STEP = 2.0**-14


def decay_rate(A_log: Tensor) -> Tensor:
    """Return the rates of decay -A = exp(A_log) in float32, kept within `RATES`."""
    return torch.exp(A_log.float().clamp(*map(math.log, RATES)))


class SelectiveScan(nn.Module):
    """A, D and the bias of delta of one selective scan over (B, L, D).

    A = -exp(A_log) is real and negative whatever the optimiser does, and 0 < exp(delta A) < 1 as float32 rounds it;
    A_log starts at log(1..N) in every channel.
    `dt_init="mamba"` draws the bias so that softplus(bias) is log-uniform in [0.001, 0.1]; `"published"` starts at 0,
    as the published MVHybrid's weight initialisation leaves it.
    """

    def __init__(self, channels: int, d_state: int, dt_init: DtInit = "published") -> None:
        super().__init__()
        self.dt_init = dt_init
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        self.dt_bias = nn.Parameter(torch.zeros(channels))
        if dt_init == "mamba":
            with torch.no_grad():
                self.dt_bias.copy_(inverse_softplus_of_log_uniform(channels))

    def forward(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor, z: Tensor | None = None) -> Tensor:
        """Scan u (B, L, D) with delta (B, L, D), B and C (B, L, N), gated by z (B, L, D); returns (B, L, D)."""
        bias = self.dt_bias.float()
        delta = delta.float().clamp(min=math.log(math.expm1(SMALLEST_STEP)) - bias)
        y = selective_scan(
            u.transpose(1, 2),
            delta.transpose(1, 2),
            -decay_rate(self.A_log),
            B.transpose(1, 2),
            C.transpose(1, 2),
            self.D.float(),
            None if z is None else z.transpose(1, 2),
            delta_bias=bias,
            delta_softplus=True,
        )
        return y.transpose(1, 2)


def inverse_softplus_of_log_uniform(count: int, low: float = 1e-3, high: float = 0.1, floor: float = 1e-4) -> Tensor:
    """Draw `count` biases whose softplus is log-uniform in [low, high] (section 3.6 of arXiv 2312.00752)."""
    dt = torch.exp(torch.rand(count) * (math.log(high) - math.log(low)) + math.log(low)).clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))
