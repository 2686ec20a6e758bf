"""A training step of ours to measure: the recipe, a batch of it, the step, and the operations it stands for."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from dinov2.data.collate import MultiCropBatch
from dinov2.data.masking import global_batch_masks
from dinov2.models.flops import count_flops
from dinov2.train.feed import BatchFeed
from dinov2.train.optim import build_optimizer
from dinov2.train.precision import Precision
from dinov2.train.schedules import StepValues
from dinov2.train.ssl_meta_arch import SSLMetaArch
from dinov2.train.step import TrainStep
from dinov2.utils.config import config_from_dict
from dinov2.utils.schema import SSLConfig

VALUES = StepValues(lr=1e-4, last_layer_lr=1e-4, weight_decay=0.04, momentum=0.992, teacher_temp=0.05)
MASKED_IMAGES, MASKED_SHARES = 0.5, (0.1, 0.5)  # DINOv2's
CLIP = 3.0


@dataclass(frozen=True)
class Recipe:
    """Sizes of one step, with two global crops an image, and its objective: the paper's, if nothing else is said."""

    backbone: str
    batch: int
    patch: int
    global_size: int
    local_size: int
    local_crops: int
    prototypes: int
    drop_path: float = 0.0
    checkpointing: bool = False
    centering: str = "sinkhorn_knopp"
    separate_head: bool = True

    def __str__(self) -> str:
        """The crops, as `2x224 8x98 /14`."""
        local = f" {self.local_crops}x{self.local_size}" if self.local_crops else ""
        return f"2x{self.global_size}{local} /{self.patch}"

    def config(self) -> SSLConfig:
        """Return the training configuration.

        Raises:
            ConfigError: the backbone is unknown, or the sizes do not fit it.
        """
        return config_from_dict(
            {
                "train": {"centering": self.centering},
                "student": {"arch": self.backbone, "patch_size": self.patch, "drop_path_rate": self.drop_path},
                "crops": {
                    "global_crops_size": self.global_size,
                    "local_crops_size": self.local_size,
                    "local_crops_number": self.local_crops,
                },
                "dino": {"head_n_prototypes": self.prototypes},
                "ibot": {"separate_head": self.separate_head, "head_n_prototypes": self.prototypes},
            }
        )


def make_batch(recipe: Recipe) -> MultiCropBatch:
    """Return a batch of noise with masks drawn with a fixed seed."""
    generator = torch.Generator().manual_seed(1)

    def crops(count: int, size: int) -> torch.Tensor:
        return torch.randn(count, 3, size, size, generator=generator)

    images, side = 2 * recipe.batch, recipe.global_size // recipe.patch
    masks = global_batch_masks(0, 0, images, (side, side), MASKED_IMAGES, MASKED_SHARES)  # (2B, N)
    weights = masks.sum(1, keepdim=True).clamp(min=1).float().reciprocal()  # (2B, 1)
    return MultiCropBatch(
        global_crops=crops(images, recipe.global_size),
        local_crops=crops(recipe.local_crops * recipe.batch, recipe.local_size),
        masks=masks,
        mask_indices=masks.flatten().nonzero().flatten(),  # (M,)
        mask_weights=weights.expand_as(masks)[masks],  # (M,)
        step=0,
        positions=list(range(recipe.batch)),
        paths=[""] * recipe.batch,
        bad=[],
    )


def make_step(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> Callable[[], float]:
    """Return a call that takes one step of the training program, from the batch to its report, and returns the loss."""
    torch.manual_seed(0)
    arch = SSLMetaArch(recipe.config()).to(device).train()
    for index, block in enumerate(arch.student_backbone.blocks if recipe.checkpointing else ()):
        arch.student_backbone.blocks[index] = checkpoint_wrapper(block)
    optimizer = build_optimizer(arch.student, recipe.config().optim)
    precision = Precision(dtype, device.type)
    step = TrainStep(arch, arch, optimizer, precision, precision.scaler(), 1, CLIP, device)
    feed = BatchFeed(repeat(make_batch(recipe).to(device)))
    return lambda: step(feed, VALUES).numbers["total_loss"]


def operations(recipe: Recipe) -> int:
    """Return the operations of a step, two a multiply-add: three forwards of the student, one of the teacher.

    Every token passes through every block here, whether or not a loss reads it; the heads are alike, one or two.
    """
    arch = SSLMetaArch(recipe.config())
    backbone, head = arch.student_backbone, arch.student["dino_head"]
    masked = len(make_batch(recipe).mask_indices)
    of_image = {
        size: count_flops(backbone, torch.zeros(1, 3, size, size))
        for size in {recipe.global_size, *([recipe.local_size] if recipe.local_crops else [])}
    }
    of_scores = sum(module.weight.numel() for module in head.modules() if isinstance(module, nn.Linear))
    of_scores += recipe.prototypes * recipe.config().dino.head_bottleneck_dim
    teacher = 2 * recipe.batch * of_image[recipe.global_size] + (2 * recipe.batch + masked) * of_scores
    local = recipe.local_crops * recipe.batch
    student = teacher + (local * (of_image[recipe.local_size] + of_scores) if local else 0)
    return 2 * (3 * student + teacher)
