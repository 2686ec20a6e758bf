"""The three parts of the DINOv2 objective and how teacher scores become targets."""

from dinov2.loss.centering import SoftmaxCenter, sinkhorn_knopp
from dinov2.loss.dino_clstoken_loss import dino_loss
from dinov2.loss.ibot_patch_loss import ibot_patch_loss
from dinov2.loss.koleo_loss import koleo_loss

__all__ = ["SoftmaxCenter", "dino_loss", "ibot_patch_loss", "koleo_loss", "sinkhorn_knopp"]
