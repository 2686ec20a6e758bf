"""Student, teacher and the DINOv2 objective (arXiv 2304.07193, section 4)."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dinov2.data.collate import MultiCropBatch
from dinov2.layers.dino_head import DINOHead
from dinov2.loss import SoftmaxCenter, dino_loss, ibot_patch_loss, koleo_loss, sinkhorn_knopp
from dinov2.loss.monitor import mean_entropy, mean_norm, softmax_entropy
from dinov2.models import IsotropicBackbone, build_model_from_cfg
from dinov2.utils.precision import at_least_float32
from dinov2.utils.schema import DinoSection, IbotSection, SSLConfig

N_GLOBAL_CROPS = 2


@dataclass(frozen=True)
class Targets:
    """What the teacher asks for: the CLS targets of each global crop (B, K), and those of the masked patches (M, K).

    `cls_norm` is the mean norm of the teacher's CLS embeddings.
    """

    cls: tuple[Tensor, Tensor]
    patches: Tensor
    cls_norm: Tensor


class SSLMetaArch(nn.Module):
    """DINO on CLS tokens, iBOT on masked patches and KoLeo, for a student and its moving average, the teacher.

    `student` and `teacher` hold `backbone`, `dino_head` and, unless the heads are shared, `ibot_head`.
    """

    def __init__(self, config: SSLConfig) -> None:
        super().__init__()
        self.dino, self.ibot = config.dino, config.ibot
        self.n_local = config.crops.local_crops_number
        student, teacher, embed_dim = build_model_from_cfg(config)
        self.student = self._with_heads(student, embed_dim)
        self.teacher = self._with_heads(teacher, embed_dim)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False).eval()
        self.centers: nn.ModuleDict | None = None
        if config.train.centering == "centering":
            patches = self.ibot.head_n_prototypes if self.ibot.separate_head else self.dino.head_n_prototypes
            self.centers = nn.ModuleDict(
                {"dino": SoftmaxCenter(self.dino.head_n_prototypes), "ibot": SoftmaxCenter(patches)}
            )

    @property
    def student_backbone(self) -> IsotropicBackbone:
        """The network that is trained."""
        return cast(IsotropicBackbone, self.student["backbone"])

    @property
    def teacher_backbone(self) -> IsotropicBackbone:
        """Its moving average, which is what a run is for."""
        return cast(IsotropicBackbone, self.teacher["backbone"])

    def forward(self, batch: MultiCropBatch, teacher_temp: float) -> dict[str, Tensor]:
        """Return the weighted parts of the loss of a batch, their sum as `total_loss`, and numbers to watch.

        Those are norms of CLS embeddings, and entropies of the teacher's targets and of the student's predictions for
        the same crops, in nats. The norms are this process's own, before any other has a part in a number.
        """
        targets = self.targets(batch, teacher_temp)
        masks = batch.masks if self.ibot.loss_weight else None
        wanted = batch.mask_indices if self.ibot.loss_weight else None
        local = [batch.local_crops] if self.n_local else []
        (global_cls, patches), *rest = self.student_backbone.forward_selected(
            [batch.global_crops, *local], [masks, *(None for _ in local)], [wanted, *(None for _ in local)]
        )  # (2B, D) and (M, D), then (nB, D) and (0, D)
        cls = torch.cat([global_cls, *(local_cls for local_cls, _ in rest)])  # ((2 + n)B, D)
        cls_scores, patch_scores = self._score(self.student, cls, patches)  # ((2 + n)B, K), (M, K)
        crops = cls_scores.chunk(N_GLOBAL_CROPS + self.n_local)
        pairs = N_GLOBAL_CROPS + N_GLOBAL_CROPS * self.n_local
        # Each global crop learns from the other one; every local crop learns from both.
        dino_global = dino_loss([crops[0]], [targets.cls[1]]) + dino_loss([crops[1]], [targets.cls[0]])
        parts = {"dino_global_crops_loss": self.dino.loss_weight * dino_global / pairs}
        if self.n_local:
            dino_local = dino_loss(crops[N_GLOBAL_CROPS:], targets.cls)
            parts["dino_local_crops_loss"] = self.dino.loss_weight * dino_local / pairs
        if self.dino.koleo_loss_weight:
            spread = sum(
                (
                    koleo_loss(crop, distributed=self.dino.koleo_loss_distributed)
                    for crop in global_cls.chunk(N_GLOBAL_CROPS)
                ),
                start=global_cls.new_zeros(()),
            )
            parts["koleo_loss"] = self.dino.koleo_loss_weight * spread
        if self.ibot.loss_weight:
            patch_loss = ibot_patch_loss(patch_scores, targets.patches, batch.mask_weights, batch.global_crops.shape[0])
            parts["ibot_loss"] = self.ibot.loss_weight * patch_loss
        parts["total_loss"] = torch.stack([at_least_float32(part) for part in parts.values()]).sum()
        watched = {
            "student_cls_norm": mean_norm(global_cls),
            "teacher_cls_norm": targets.cls_norm,
            "dino_target_entropy": mean_entropy(torch.cat(targets.cls)),
            "dino_student_entropy": softmax_entropy(cls_scores[: len(global_cls)].detach()),
        }
        if self.ibot.loss_weight:
            watched["ibot_target_entropy"] = mean_entropy(targets.patches)
            watched["ibot_student_entropy"] = softmax_entropy(patch_scores.detach())
        return parts | watched

    @torch.no_grad()
    def targets(self, batch: MultiCropBatch, teacher_temp: float) -> Targets:
        """Return the teacher's targets for a batch."""
        wanted = batch.mask_indices if self.ibot.loss_weight else None
        ((cls, patches),) = self.teacher_backbone.forward_selected([batch.global_crops], [None], [wanted])
        cls_scores, patch_scores = self._score(self.teacher, cls, patches)  # (2B, K), (M, K)
        first, second = self._sharpen(cls_scores, teacher_temp, "dino").chunk(N_GLOBAL_CROPS)
        if not self.ibot.loss_weight:
            return Targets((first, second), patch_scores, mean_norm(cls))
        return Targets((first, second), self._sharpen(patch_scores, teacher_temp, "ibot"), mean_norm(cls))

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move the teacher towards the student: t = momentum * t + (1 - momentum) * s, in place.

        Both are sharded alike, so that each process moves its own shards, all in one foreach call.
        """
        teacher, student = (_local_tensors(module) for module in (self.teacher, self.student))
        get_ema_multi_avg_fn(momentum)(teacher, student, None)

    def train(self, mode: bool = True) -> "SSLMetaArch":
        """Set the student's mode; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def _sharpen(self, scores: Tensor, temperature: float, which: str) -> Tensor:
        if self.centers is not None:
            return self.centers[which](scores, temperature)
        return sinkhorn_knopp(scores, temperature)

    def _score(self, modules: nn.ModuleDict, cls: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Score CLS embeddings (C, D) and patches (M, D) by their heads, by one call if they share it."""
        if not self.ibot.loss_weight:
            cls_scores = modules["dino_head"](cls)
            return cls_scores, cls_scores[:0]
        if self.ibot.separate_head:
            return modules["dino_head"](cls), modules["ibot_head"](patches)
        cls_scores, patch_scores = modules["dino_head"](torch.cat([cls, patches])).split([len(cls), len(patches)])
        return cls_scores, patch_scores

    def _with_heads(self, backbone: IsotropicBackbone, embed_dim: int) -> nn.ModuleDict:
        def head(section: DinoSection | IbotSection) -> DINOHead:
            return DINOHead(
                embed_dim,
                section.head_n_prototypes,
                section.head_nlayers,
                section.head_hidden_dim,
                section.head_bottleneck_dim,
            )

        modules: dict[str, nn.Module] = {"backbone": backbone, "dino_head": head(self.dino)}
        if self.ibot.loss_weight and self.ibot.separate_head:
            modules["ibot_head"] = head(self.ibot)
        return nn.ModuleDict(modules)


def _local_tensors(module: nn.Module) -> list[Tensor]:
    """Return the parameters, or this process's shards of them."""
    return [parameter.to_local() if isinstance(parameter, DTensor) else parameter for parameter in module.parameters()]
