"""The names of the published MVHybrid code, and of the Mamba, Vim and Hydra mixers it was compared with.

Its backbone holds `blocks.blocks.N` with `mixer` and `channel_mixer` in every block, attention and MLP included; ours
has DINOv2's `attn` and `mlp` there, and keeps the parameters of a scan in a module of their own.

Its MambaVision mixer adds the bias of `dt_proj` twice, in the projection and again in the scan; Mamba, Vim and Hydra
add theirs once. Ours is added once, so that the former is doubled on import.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dinov2.models.official import HEAD_WIDTH
from dinov2.utils.errors import CheckpointError

_BLOCK = re.compile(r"^blocks\.(?:blocks\.)?(\d+)\.(.+)$")
_RENAMED = {
    "gamma_1": "ls1.gamma",
    "gamma_2": "ls2.gamma",
    "mixer.A_log": "mixer.scan.A_log",
    "mixer.D": "mixer.scan.D",
    "mixer.dt_bias": "mixer.scan.dt_bias",  # Hydra's
    "mixer.dt_proj.bias": "mixer.scan.dt_bias",
} | {
    f"{kind}.{part}.{leaf}": f"{ours}.{part}.{leaf}"
    for kind, ours, parts in (("mixer", "attn", ("qkv", "proj")), ("channel_mixer", "mlp", ("fc1", "fc2")))
    for part in parts
    for leaf in ("weight", "bias")
}
# Vim's two directions: the second has the suffix _b, in A_b_log in the middle.
_VIM = {
    f"mixer.{part}{suffix}.{leaf}": f"mixer.{direction}.{'scan.dt_bias' if bias else f'{part}.{leaf}'}"
    for direction, suffix in (("forward_direction", ""), ("backward_direction", "_b"))
    for part, leaf, bias in (
        ("conv1d", "weight", False),
        ("conv1d", "bias", False),
        ("x_proj", "weight", False),
        ("dt_proj", "weight", False),
        ("dt_proj", "bias", True),
    )
} | {
    "mixer.A_log": "mixer.forward_direction.scan.A_log",
    "mixer.D": "mixer.forward_direction.scan.D",
    "mixer.A_b_log": "mixer.backward_direction.scan.A_log",
    "mixer.D_b": "mixer.backward_direction.scan.D",
}
# The name in a block that gives its mixer away, and the backbone that is built of them.
_SEQUENCE = {
    "mixer.conv1d_x.weight": "mamba_vision",
    "mixer.conv1d_b.weight": "vim",
    "mixer.fc_D.weight": "hydra",
    "mixer.qkv.weight": "attention",
    "attn.qkv.weight": "attention",
}
_ARCHITECTURES = {"mamba_vision": "mvhybrid", "vim": "vim_einfft", "hydra": "hydra_einfft"}
_FOREIGN = ("mixer.A_log", "mixer.dt_proj.bias", "mixer.qkv.weight")


def is_published(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether a state dict has the published code's names."""
    return any((match := _BLOCK.match(name)) and match[2] in _FOREIGN for name in tensors)


def rename_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under our names, with the bias of MambaVision's `dt_proj` doubled.

    Raises:
        CheckpointError: a learned position embedding, in which the published code's place of CLS is not known.
    """
    if "pos_embed" in tensors:
        raise CheckpointError(
            "pos_embed: which of its entries is that of CLS in the published Vim and Hydra backbones is not known, so "
            "they are not imported; save the weights under this package's names, with the entry of CLS first"
        )
    blocks = _blocks(tensors)
    renamed = {name: tensor for name, tensor in tensors.items() if not _BLOCK.match(name)}
    for index, block in blocks.items():
        kind = _sequence_mixer(index, block)
        for name, tensor in block.items():
            new = _VIM.get(name, name) if kind == "vim" else name
            doubled = kind == "mamba_vision" and name == "mixer.dt_proj.bias"
            renamed[f"blocks.{index}.{_RENAMED.get(new, new)}"] = 2 * tensor if doubled else tensor
    return renamed


def published_student(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the `student` section that a state dict for which `is_published` holds asks for.

    Heads are 64 channels wide, as in every published configuration.

    Raises:
        CheckpointError: a block without a mixer that is known.
    """
    groups: list[list[Any]] = []
    for index, block in sorted(_blocks(tensors).items()):
        mixers = _sequence_mixer(index, block), _channel_mixer(block)
        if groups and groups[-1][1] == mixers:
            groups[-1][0] += 1
        else:
            groups.append([1, mixers])
    first = next((sequence for _, (sequence, _) in groups if sequence != "attention"), "mamba_vision")
    patch = tensors["patch_embed.proj.weight"]
    layerscale = {"layerscale": 1.0} if any(name.endswith("gamma_1") for name in tensors) else {}
    states = next(
        (tensor.shape[1] for name, tensor in tensors.items() if name.endswith("A_log") and tensor.ndim == 2), None
    )
    return layerscale | {
        "arch": _ARCHITECTURES[first],
        "blocks": [f"{count} x {sequence} + {channel}" for count, (sequence, channel) in groups],
        "patch_size": patch.shape[-1],
        "embed_dim": patch.shape[0],
        "num_heads": max(patch.shape[0] // HEAD_WIDTH, 1),
        "ssm": {"d_state": states},
        "qkv_bias": any(name.endswith("qkv.bias") for name in tensors),
    }


def _blocks(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    blocks: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _BLOCK.match(name):
            blocks.setdefault(int(match[1]), {})[match[2]] = tensor
    return blocks


def _sequence_mixer(index: int, block: Mapping[str, Tensor]) -> str:
    found = next((mixer for name, mixer in _SEQUENCE.items() if name in block), None)
    if found is None:
        raise CheckpointError(f"block {index} holds no mixer that is known, only {', '.join(sorted(block)[:8])}")
    return found


def _channel_mixer(block: Mapping[str, Tensor]) -> str:
    return "einfft" if "channel_mixer.complex_weight_1" in block else "mlp"
