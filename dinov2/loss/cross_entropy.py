"""Cross-entropy of scores against given probabilities, without a second array of the scores' size.

H(t, s) = sum(t) logsumexp(s / T) - t . s / T,   dH/ds = (sum(t) softmax(s / T) - t) / T

Scores of many patches against 65,536 prototypes do not fit a CPU's cache; both passes take a few rows at a time, so
that each number is read once, and only the gradient is written.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dinov2.loss.row_chunks import row_chunks


def soft_cross_entropy(scores: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy (M,) of softmax(scores / temperature) against targets, in at least float32.

    Args:
        scores: (M, K), of any floating-point dtype; their gradient has it too.
        targets: (M, K) weights, of any sum; they get no gradient.
        temperature: of the softmax.
    """
    return _SoftCrossEntropy.apply(scores, targets, temperature)


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, targets: Tensor, temperature: float) -> Tensor:
        wide = torch.promote_types(scores.dtype, torch.float32)
        normaliser, total, match = (scores.new_empty(scores.shape[0], dtype=wide) for _ in range(3))  # each (M,)
        for rows in row_chunks(scores):
            logits, weights = scores[rows].to(wide) / temperature, targets[rows].to(wide)
            normaliser[rows] = logits.logsumexp(1)
            total[rows] = weights.sum(1)
            match[rows] = logits.mul_(weights).sum(1)
        ctx.temperature = temperature
        ctx.save_for_backward(scores, targets, normaliser, total)
        return total * normaliser - match

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        scores, targets, normaliser, total = ctx.saved_tensors
        out = torch.empty_like(scores)
        scale = grad / ctx.temperature  # (M,)
        for rows in row_chunks(scores):
            part = scores[rows].to(normaliser.dtype) / ctx.temperature
            part.sub_(normaliser[rows, None]).exp_().mul_(total[rows, None]).sub_(targets[rows])
            out[rows] = part.mul_(scale[rows, None])
        return out, None, None
