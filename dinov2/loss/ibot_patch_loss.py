"""The iBOT loss on masked patches (arXiv 2111.07832, equation 2)."""

import torch.nn.functional as F
from torch import Tensor

from dinov2.utils.precision import at_least_float32


def ibot_patch_loss(
    student_scores: Tensor, targets: Tensor, weights: Tensor, n_images: int, student_temp: float = 0.1
) -> Tensor:
    """Return the cross-entropy of masked patches, averaged within each image, then over all images.

    Args:
        student_scores: scores of the masked patches (M, K).
        targets: probabilities for them (M, K).
        weights: 1 / number of masked patches in the patch's image (M,).
        n_images: images in the batch, those without a mask included.
        student_temp: temperature of the student's softmax.
    """
    entropy = -(targets * F.log_softmax(at_least_float32(student_scores) / student_temp, dim=-1)).sum(-1)  # (M,)
    return (entropy * weights).sum() / n_images
