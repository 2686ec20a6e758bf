"""The backbones as models of timm: `timm.create_model("mvhybrid_small", checkpoint_path="teacher.safetensors")`.

A model of timm gives its tokens as one tensor and has a head. Parameters keep their names, so that one file of weights
serves timm and this package. Importing this module imports timm; `timm_hook` puts that off until somebody else does.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import Tensor, nn

from dinov2.models.isotropic import IsotropicBackbone
from dinov2.models.official import IMAGENET, INPUT_SIZE
from dinov2.models.registry import get_spec, list_backbones
from dinov2.models.spec import SIZES
from dinov2.utils.schema import NormalizeSection

POOLS = ("token", "avg", "token+avg", "")


class TimmBackbone(IsotropicBackbone):
    """A backbone with timm's interface: `forward_features` gives tokens, `forward_head` pools and classifies them.

    Args:
        name: a backbone, also with a size, such as `mvhybrid_small`.
        num_classes: outputs of the head; 0 leaves it out.
        global_pool: `token` (CLS), `avg` (mean of the patch tokens), `token+avg` (both, concatenated), or an empty text
            (all tokens).
        in_chans: must be 3.
        img_size: side in px of the grid of a learned position embedding; images may have any size, and weights with
            another grid bring theirs.
        drop_rate: dropout before the head.
        overrides: other values for fields of the backbone's spec, such as `depth=4`.

    Raises:
        ValueError: a value that is not possible, or an unknown field (with the nearest known one).
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 0,
        global_pool: str = "token",
        in_chans: int = 3,
        img_size: int | tuple[int, int] | None = None,
        drop_rate: float = 0.0,
        **overrides: Any,
    ) -> None:
        if in_chans != 3:
            raise ValueError(f"{name}: in_chans = {in_chans}; these backbones take RGB images, in_chans=3")
        if img_size is not None:
            overrides["img_size"] = _side(name, img_size)
        super().__init__(get_spec(name, **overrides))
        self.num_prefix_tokens = 1 + self.num_register_tokens
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self.register_load_state_dict_pre_hook(_adopt_position_grid)

    def forward_features(self, x: Tensor, masks: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Embed images (B, 3, H, W) as normed tokens (B, 1 + R + N, D): CLS, R registers, N patches in raster order.

        Patches where `masks` (B, N) is True are replaced by the mask token.
        """
        out = super().forward_features(x, masks)
        return torch.cat([out["x_norm_clstoken"].unsqueeze(1), out["x_norm_regtokens"], out["x_norm_patchtokens"]], 1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool tokens (B, 1 + R + N, D), if there is a pooling, and classify unless `pre_logits`."""
        if self.global_pool:
            pools = {"token": x[:, 0], "avg": x[:, self.num_prefix_tokens :].mean(1)}  # each (B, D)
            x = torch.cat([pools[name] for name in self.global_pool.split("+")], dim=1)  # (B, D) or (B, 2 D)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return the logits (B, num_classes) of images (B, 3, H, W), without classes the embedding (B, D)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """Return the head: a linear layer, or the identity without classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one, and the pooling where one is given.

        Raises:
            ValueError: an unknown pooling.
        """
        if global_pool is not None:
            if global_pool not in POOLS:
                raise ValueError(f"{self.spec.name}: global_pool = {global_pool!r}; choose one of {POOLS}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head_hidden_size = self.num_features * len(self.global_pool.split("+"))
        self.add_module("head", nn.Linear(self.head_hidden_size, num_classes) if num_classes > 0 else nn.Identity())


def timm_names() -> list[str]:
    """Return the names under which timm knows the backbones: NAME_SIZE, and DINOv2's own as they are."""
    names = list_backbones()
    return [
        full for name in names for full in ([name] if name.startswith("vit_") else [f"{name}_{size}" for size in SIZES])
    ]


def register() -> None:
    """Register every name with timm; names that timm has are left alone."""
    for name in timm_names():
        if not is_model(name):
            register_model(_entrypoint(name))


def _side(name: str, img_size: int | tuple[int, int]) -> int:
    sides = {img_size} if isinstance(img_size, int) else set(img_size)
    if len(sides) != 1:
        raise ValueError(f"{name}: img_size = {img_size}; position embeddings have square grids, so give one side")
    return int(sides.pop())


def _adopt_position_grid(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Make room for the position embedding of a training at another size: it is interpolated at every image anyway."""
    found, own = state.get(f"{prefix}pos_embed"), getattr(module, "pos_embed", None)
    if found is not None and own is not None and found.shape[::2] == own.shape[::2] and found.shape != own.shape:
        module.pos_embed = nn.Parameter(own.new_zeros(found.shape), requires_grad=own.requires_grad)


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if kwargs.pop("features_only", False):
            raise ValueError(f"{name}: features_only is not offered; use get_intermediate_layers of the model")
        return build_model_with_cfg(partial(TimmBackbone, name), name, pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__module__ = __name__  # where timm looks for default_cfgs
    entrypoint.__doc__ = f"{name}; see `TimmBackbone` for its arguments."
    return entrypoint


def _default_cfg(name: str) -> dict[str, Any]:
    statistics = IMAGENET if name.startswith("vit_") else vars(NormalizeSection())
    side = INPUT_SIZE if name.startswith("vit_") else get_spec(name).img_size
    return {
        "num_classes": 0,
        "input_size": (3, side, side),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": tuple(statistics["mean"]),
        "std": tuple(statistics["std"]),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs({name: _default_cfg(name) for name in timm_names()})
