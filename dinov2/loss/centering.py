"""From teacher scores to targets: Sinkhorn-Knopp (arXiv 2006.09882) or centring and softmax (arXiv 2104.14294)."""

import torch
from torch import Tensor, nn

from dinov2.distributed.env import all_reduce_max, all_reduce_sum
from dinov2.loss.row_chunks import empty_wide, row_chunks


@torch.no_grad()
def sinkhorn_knopp(scores: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Return targets (M, K) from teacher scores (M, K): rows sum to 1, columns to about M / K over all processes.

    exp(scores / temperature) is normalised alternately over prototypes and samples: it stays a matrix between two
    diagonal ones, so that only their vectors change. Each row is shifted by its largest value, which its first factor
    makes good for, so that nothing overflows and no row vanishes.
    """
    kernel = torch.empty_like(
        scores, dtype=torch.promote_types(scores.dtype, torch.float32)
    )  # (M, K), the largest of each row is 1
    largest = kernel.new_empty(len(scores))  # (M,)
    for rows in row_chunks(scores):
        logits = kernel[rows].copy_(scores[rows]).div_(temperature)
        largest[rows] = logits.amax(1)
        logits.sub_(largest[rows, None]).exp_()
    highest = all_reduce_max(largest.amax() if len(largest) else largest.new_full((), -torch.inf))
    per_row = torch.exp(largest - highest)  # (M,)
    per_column = kernel.new_ones(kernel.shape[1])  # (K,)
    samples = all_reduce_sum(kernel.new_full((), kernel.shape[0]))
    tiny = torch.finfo(kernel.dtype).tiny
    with torch.autocast(kernel.device.type, enabled=False):
        for _ in range(iterations):
            columns = all_reduce_sum(per_row @ kernel)  # (K,)
            per_column = 1 / columns.clamp_min(tiny) / kernel.shape[1]
            per_row = 1 / (kernel @ per_column) / samples
    per_row *= samples
    for rows in row_chunks(kernel):
        kernel[rows].mul_(per_column).mul_(per_row[rows, None])
    return kernel


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
        targets = empty_wide(scores)  # (M, K)
        for rows in row_chunks(scores):
            logits = targets[rows].copy_(scores[rows]).sub_(self.center).div_(temperature)
            logits.sub_(logits.amax(1, keepdim=True)).exp_()
            logits.div_(logits.sum(1, keepdim=True))
        total = all_reduce_sum(scores.sum(0, keepdim=True, dtype=targets.dtype))  # (1, K)
        count = all_reduce_sum(total.new_full((), scores.shape[0]))
        # Without samples the mean is taken to be the centre. No branch, which would wait for the device.
        mean = torch.where(count > 0, total / count.clamp(min=1), self.center)
        self.center.lerp_(mean.to(self.center.dtype), 1 - self.momentum)
        return targets
