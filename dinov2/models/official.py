"""Facebook Research's DINOv2 checkpoints (arXiv 2304.07193, with registers 2309.16588): all is told by their shapes.

`dinov2_vits14_pretrain.pth`, `dinov2_vitg14_reg4_pretrain.pth` and the like come without a configuration. Their names
are those of our vision transformers, so that only the architecture has to be found.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

logger = logging.getLogger("dinov2")

PATCH_SIZE = 14
HEAD_WIDTH = 64  # in every official architecture
INPUT_SIZE = 224  # px; the size of DINOv2's own evaluations, whatever grid the position embedding has
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

_NAMES = {384: "vit_small", 768: "vit_base", 1024: "vit_large", 1536: "vit_giant2"}
_SIGNS = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.ls1.gamma")


def is_official(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether a state dict has the names of DINOv2's vision transformers with LayerScale and 14 px patches."""
    return all(name in tensors for name in _SIGNS) and tensors["patch_embed.proj.weight"].shape[-1] == PATCH_SIZE


def official_values(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the configuration that a state dict for which `is_official` holds asks for, as nested values.

    Registers mean `interpolate_antialias` and an `interpolate_offset` of 0, as in Facebook Research's models; without
    them it is no antialiasing and 0.1.

    Raises:
        ValueError: the width is no multiple of 64, the width of a head, or the position embedding has no square grid.
    """
    width = tensors["cls_token"].shape[-1]
    positions = tensors["pos_embed"].shape[1] - 1  # the first is that of CLS
    grid = math.isqrt(positions)
    if width % HEAD_WIDTH:
        raise ValueError(f"width {width}: DINOv2's heads are {HEAD_WIDTH} channels wide, which does not divide it")
    if grid * grid != positions:
        raise ValueError(f"pos_embed has {positions} patches; expected the square of a number")
    registers = tensors["register_tokens"].shape[1] if "register_tokens" in tensors else 0
    swiglu = "blocks.0.mlp.w12.weight" in tensors
    name = _NAMES.get(width, "vit_small")
    depth = len({key.split(".")[1] for key in tensors if key.startswith("blocks.")})
    student: dict[str, Any] = {
        "arch": name,
        "patch_size": PATCH_SIZE,
        "embed_dim": width,
        "depth": depth,
        "num_heads": width // HEAD_WIDTH,
        "ffn_layer": "swiglufused" if swiglu else "mlp",
        "num_register_tokens": registers,
        "interpolate_antialias": registers > 0,
        "interpolate_offset": 0.0 if registers else 0.1,
    }
    if not swiglu:
        student["mlp_ratio"] = tensors["blocks.0.mlp.fc1.weight"].shape[0] / width
    logger.info(
        "weights: DINOv2's %s, %d blocks, %d registers, found by its shapes; ImageNet's statistics, %d px",
        name,
        depth,
        registers,
        INPUT_SIZE,
    )
    return {
        "student": student,
        "crops": {"global_crops_size": grid * PATCH_SIZE, "local_crops_size": 7 * PATCH_SIZE, "normalize": IMAGENET},
        "evaluation": {"input_size": INPUT_SIZE},
    }
