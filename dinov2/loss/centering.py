"""From teacher scores to targets: Sinkhorn-Knopp (arXiv 2006.09882) or centring and softmax (arXiv 2104.14294)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.distributed.env import all_reduce_sum


@torch.no_grad()
def sinkhorn_knopp(scores: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Return targets (M, K) from teacher scores (M, K): rows sum to 1, columns to about M / K over all processes.

    exp(scores / temperature) is normalised alternately over prototypes and samples. The scores are shifted by their
    largest value first, which the normalisation cancels, so that nothing overflows.
    """
    logits = scores.float() / temperature
    largest = logits.amax() if logits.numel() else logits.new_zeros(())
    q = torch.exp(logits - _all_reduce_max(largest))  # (M, K)
    samples = all_reduce_sum(torch.tensor(float(q.shape[0]), device=q.device))
    prototypes = q.shape[1]
    for _ in range(iterations):
        columns = all_reduce_sum(q.sum(0, keepdim=True))  # (1, K)
        q = q / columns.clamp_min(torch.finfo(q.dtype).tiny) / prototypes
        rows = q.sum(1, keepdim=True)  # (M, 1)
        q = q / rows.clamp_min(torch.finfo(q.dtype).tiny) / samples
    return q * samples


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
        targets = F.softmax((scores.float() - self.center) / temperature, dim=-1)
        total = all_reduce_sum(scores.float().sum(0, keepdim=True))
        count = all_reduce_sum(torch.tensor(float(scores.shape[0]), device=scores.device))
        if count > 0:
            self.center.lerp_(total / count, 1 - self.momentum)
        return targets


def _all_reduce_max(tensor: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return tensor
