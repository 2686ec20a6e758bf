"""The DINO loss on CLS tokens (arXiv 2104.14294, equation 1)."""

from collections.abc import Sequence

from torch import Tensor

from dinov2.loss.cross_entropy import soft_cross_entropy


def dino_loss(student_scores: Sequence[Tensor], targets: Sequence[Tensor], student_temp: float = 0.1) -> Tensor:
    """Return the sum over all pairs (student crop, target crop) of the mean cross-entropy over images.

    Args:
        student_scores: per crop, scores (B, K).
        targets: per crop, probabilities (B, K).
        student_temp: temperature of the student's softmax.
    """
    # The cross-entropy is linear in the targets: sum them first, one product a student crop.
    total = sum(targets[1:], start=targets[0])  # (B, K)
    losses = [soft_cross_entropy(scores, total, student_temp).mean() for scores in student_scores]
    return sum(losses[1:], start=losses[0])
