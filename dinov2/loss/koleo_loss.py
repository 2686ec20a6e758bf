"""The KoLeo regulariser (arXiv 1806.03198): spreads embeddings over the sphere."""

import torch
import torch.nn.functional as F
from torch import Tensor


def koleo_loss(embeddings: Tensor, eps: float = 1e-8) -> Tensor:
    """Return - mean log of the distance from each L2-normalised embedding (B, D) to its nearest neighbour in the batch.

    A batch of one has no neighbour and costs nothing.
    """
    if embeddings.shape[0] < 2:
        return embeddings.sum() * 0.0
    with torch.autocast(embeddings.device.type, enabled=False):
        x = F.normalize(embeddings.float(), eps=eps, dim=-1)  # (B, D)
        similarity = (x @ x.T).detach().fill_diagonal_(-torch.inf)
        nearest = similarity.argmax(dim=1)  # (B,)
        distance = F.pairwise_distance(x, x[nearest], eps=eps)
        return -torch.log(distance + eps).mean()
