"""The KoLeo regulariser (arXiv 1806.03198): spreads embeddings over the sphere."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dinov2.distributed.env import gather_rows, rank
from dinov2.utils.precision import at_least_float32


def koleo_loss(embeddings: Tensor, eps: float = 1e-8, distributed: bool = True) -> Tensor:
    """Return - mean log of the distance from each L2-normalised embedding (B, D) to its nearest neighbour in the batch.

    With `distributed` the neighbours are sought among the embeddings of all processes, each of which has as many; the
    mean is over this process's own, so that the mean over processes is that of the global batch. A batch of one has no
    neighbour and costs nothing.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        x = F.normalize(at_least_float32(embeddings), eps=eps, dim=-1)  # (B, D)
        everyone, first = (gather_rows(x), rank() * len(x)) if distributed else (x, 0)  # (W B, D)
        if len(everyone) < 2:
            return embeddings.sum() * 0.0
        similarity = (x @ everyone.T).detach()  # (B, W B)
        similarity.diagonal(first).fill_(-torch.inf)  # nobody is a neighbour of itself
        nearest = similarity.argmax(dim=1)  # (B,)
        distance = F.pairwise_distance(x, everyone[nearest], eps=eps)
        return -torch.log(distance + eps).mean()
