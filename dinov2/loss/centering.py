"""From teacher scores to targets: Sinkhorn-Knopp (arXiv 2006.09882) or centring and softmax (arXiv 2104.14294)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.distributed.env import all_reduce_max, all_reduce_sum
from dinov2.utils.precision import at_least_float32


@torch.no_grad()
def sinkhorn_knopp(scores: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Return targets (M, K) from teacher scores (M, K): rows sum to 1, columns to about M / K over all processes.

    exp(scores / temperature) is normalised alternately over prototypes and samples: it stays a matrix between two
    diagonal ones, so that only their vectors change. Each row is shifted by its largest value, which its first factor
    makes good for, so that nothing overflows and no row vanishes.
    """
    logits = at_least_float32(scores) / temperature
    largest = logits.amax(1)  # (M,)
    highest = all_reduce_max(largest.amax() if len(largest) else largest.new_tensor(-torch.inf))
    kernel = torch.exp(logits - largest[:, None])  # (M, K), the largest of each row is 1
    per_row = torch.exp(largest - highest)  # (M,)
    per_column = kernel.new_ones(kernel.shape[1])  # (K,)
    samples = all_reduce_sum(kernel.new_tensor(float(kernel.shape[0])))
    tiny = torch.finfo(kernel.dtype).tiny
    with torch.autocast(kernel.device.type, enabled=False):
        for _ in range(iterations):
            columns = all_reduce_sum(per_row @ kernel)  # (K,)
            per_column = 1 / columns.clamp_min(tiny) / kernel.shape[1]
            per_row = 1 / (kernel @ per_column) / samples
    return kernel * per_column * (per_row * samples)[:, None]


class SoftmaxCenter(nn.Module):
    """softmax((scores - centre) / temperature), with the centre a moving average of the mean teacher scores (1, K)."""

    center: Tensor

    def __init__(self, out_dim: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(1, out_dim))

    @torch.no_grad()
    def forward(self, scores: Tensor, temperature: float) -> Tensor:
        """Return targets (M, K) from scores (M, K) by the present centre, then move the centre towards their mean."""
        targets = F.softmax((at_least_float32(scores) - self.center) / temperature, dim=-1)
        total = all_reduce_sum(at_least_float32(scores).sum(0, keepdim=True))
        count = all_reduce_sum(torch.tensor(float(scores.shape[0]), device=scores.device))
        if count > 0:
            mean = (total / count).to(self.center.dtype)
            # A step with NaN scores is skipped, and may not live on here.
            self.center.lerp_(torch.where(torch.isfinite(mean), mean, self.center), 1 - self.momentum)
        return targets
