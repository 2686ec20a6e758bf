"""Backbones as calls to time: ours and timm's, the loss, the float64 check, and the operations of a call."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from common import WrongResultError
from torch import Tensor, nn

from dinov2.models import build_backbone
from dinov2.models.flops import count_flops

TIMM = {"timm ViT-S/16, 12": 12, "timm ViT-S/16, 24": 24}  # name -> depth
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}  # of the norm of the CLS embedding


@dataclass(frozen=True)
class Images:
    """A group of square images of one size."""

    count: int
    size: int

    def __str__(self) -> str:
        return f"{self.count}x{self.size}"


class Backbone(nn.Module):
    """A backbone that returns CLS (B, D) and patch tokens (B, N, D), whoever made it."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        self.of_timm = name in TIMM
        self.model: Any = _timm(TIMM[name], size) if self.of_timm else build_backbone(name, img_size=size)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embed images (B, 3, H, W)."""
        if self.of_timm:
            tokens = self.model.forward_features(images)  # (B, 1 + N, D)
            return tokens[:, 0], tokens[:, 1:]
        features = self.model.forward_features(images)
        return features["x_norm_clstoken"], features["x_norm_patchtokens"]


def _timm(depth: int, size: int) -> nn.Module:
    import timm

    return timm.create_model(
        "vit_small_patch16_224", pretrained=False, img_size=size, depth=depth, num_classes=0, dynamic_img_size=True
    )


def make_backbone(name: str, groups: Sequence[Images], device: torch.device) -> Backbone:
    """Return the backbone with weights drawn with a fixed seed, built for the largest of the images, in eval mode.

    Raises:
        ValueError: the name is unknown.
    """
    torch.manual_seed(0)
    return Backbone(name, max(group.size for group in groups)).eval().to(device)


def make_images(groups: Sequence[Images], device: torch.device) -> list[Tensor]:
    """Return one tensor (count, 3, size, size) a group."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(g.count, 3, g.size, g.size, generator=generator).to(device) for g in groups]


def make_call(model: Backbone, images: Sequence[Tensor], mode: str, dtype: torch.dtype) -> Callable[[], object]:
    """Return the call that is measured; the loss is the sum of CLS plus the mean of the patch tokens of every group.

    With `dtype` bfloat16 it runs under autocast.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def outputs() -> list[tuple[Tensor, Tensor]]:
        with torch.autocast(images[0].device.type, dtype, enabled=dtype != torch.float32):
            return [model(batch) for batch in images]

    def forward() -> object:
        with torch.no_grad():
            return outputs()

    def forward_backward() -> object:
        loss = torch.stack([cls.float().sum() + patches.float().mean() for cls, patches in outputs()]).sum()
        return torch.autograd.grad(loss, parameters, allow_unused=True)  # nothing is masked, so no mask token is used

    return forward if mode == "forward" else forward_backward


def check_backbone(name: str, model: Backbone, image: Tensor, dtype: torch.dtype) -> None:
    """Compare the CLS embedding of one image (1, 3, H, W) with that of the same model in float64 on the CPU.

    Raises:
        WrongResultError: they differ by more than TOLERANCE[dtype] of the embedding's norm.
    """
    with torch.no_grad():
        exact = copy.deepcopy(model).to("cpu", torch.float64)(image.to("cpu", torch.float64))[0]
        with torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
            got = model(image)[0].to("cpu", torch.float64)
    error = float((got - exact).norm() / exact.norm())
    if not error <= TOLERANCE[dtype]:
        raise WrongResultError(f"{name}: the CLS embedding is off by {error:.2e} of its norm in float64")


def multiply_adds(model: Backbone, groups: Sequence[Images]) -> int:
    """Return the multiply-adds of a forward pass over all groups."""
    on_cpu = copy.deepcopy(model).cpu()
    return sum(group.count * count_flops(on_cpu, torch.zeros(1, 3, group.size, group.size)) for group in groups)
