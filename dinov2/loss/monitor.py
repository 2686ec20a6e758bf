"""Numbers that tell whether the targets still say something and the embeddings stay in range; none enters the loss."""

import torch
from torch import Tensor

from dinov2.loss.row_chunks import empty_wide, row_chunks
from dinov2.utils.precision import at_least_float32


@torch.no_grad()
def mean_entropy(probabilities: Tensor) -> Tensor:
    """Return the mean entropy of the rows of (M, K), in nats; 0 without rows.

    It is 0 when each row names one prototype, and log K when it names none.
    """
    entropies = empty_wide(probabilities[:, 0])  # (M,)
    for rows in row_chunks(probabilities):
        entropies[rows] = torch.special.entr(probabilities[rows].to(entropies.dtype)).sum(1)
    return entropies.sum() / max(len(entropies), 1)


@torch.no_grad()
def softmax_entropy(scores: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the mean entropy of softmax(scores / temperature) over the rows of (M, K), in nats."""
    entropies = empty_wide(scores[:, 0])  # (M,)
    for rows in row_chunks(scores):
        logs = torch.log_softmax(scores[rows].to(entropies.dtype) / temperature, dim=1)
        entropies[rows] = -(logs.exp() * logs).sum(1)
    return entropies.sum() / max(len(entropies), 1)


@torch.no_grad()
def mean_norm(embeddings: Tensor) -> Tensor:
    """Return the mean L2 norm of embeddings (B, D)."""
    return at_least_float32(embeddings).norm(dim=-1).mean()
