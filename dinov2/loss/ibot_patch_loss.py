"""The iBOT loss on masked patches (arXiv 2111.07832, equation 2)."""

from torch import Tensor

from dinov2.loss.cross_entropy import soft_cross_entropy


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
    entropy = soft_cross_entropy(student_scores, targets, student_temp)  # (M,)
    return (entropy * weights).sum() / n_images
