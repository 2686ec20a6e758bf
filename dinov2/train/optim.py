"""Parameter groups: learning-rate multipliers, weight decay or none, and the frozen last layer."""

import re
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from dinov2.train.schedules import StepValues
from dinov2.utils.schema import OptimSection

FUSED_DEVICES = ("cpu", "cuda")  # have a fused AdamW in every supported release of PyTorch
_TOKENS = ("cls_token", "mask_token", "register_tokens", "pos_embed")


def parameter_groups(modules: nn.ModuleDict, optim: OptimSection) -> list[dict[str, Any]]:
    """Group the parameters of the student's modules by what their schedule has in common.

    Each group has `params`, `lr_multiplier`, `wd_multiplier` and `is_last_layer`. Layer-wise decay counts the
    embedding as layer 0 and block i as layer i + 1, and gives layer l the rate decay^(depth + 1 - l).
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = defaultdict(list)
    for module in modules.values():
        blocks = getattr(module, "blocks", None)
        depth = len(blocks) if isinstance(blocks, nn.ModuleList) else 0
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            multiplier = optim.layerwise_decay ** (depth + 1 - _layer(name, depth)) if depth else 1.0
            if "patch_embed" in name:
                multiplier *= optim.patch_embed_lr_mult
            decay = 0.0 if has_no_decay(name, optim.no_decay) else 1.0
            groups[multiplier, decay, "last_layer" in name].append(parameter)
    return [
        {"params": params, "lr_multiplier": lr, "wd_multiplier": wd, "is_last_layer": last}
        for (lr, wd, last), params in groups.items()
    ]


def has_no_decay(name: str, rule: str) -> bool:
    """Tell whether weight decay spares the parameter `name`.

    `dinov2` is its rule by name (the scans' dt bias is a bias under any name); `ours` also spares tokens, position
    embeddings, complex biases and the scans' A_log and D, all of which decay would push towards values without meaning.
    """
    by_name = name.endswith((".bias", ".dt_bias")) or "norm" in name or "gamma" in name
    if rule == "dinov2" or by_name:
        return by_name
    leaf = name.rsplit(".", 1)[-1]
    return leaf in (*_TOKENS, "A_log", "D") or leaf.startswith("complex_bias")


def build_optimizer(modules: nn.ModuleDict, optim: OptimSection) -> torch.optim.AdamW:
    """Return AdamW over the groups; `apply_schedule` sets rates and decay before each step.

    One fused kernel updates all parameters where PyTorch has it for their device, DTensors included; elsewhere PyTorch
    chooses between foreach and a loop.
    """
    groups = parameter_groups(modules, optim)
    fused = all(parameter.device.type in FUSED_DEVICES for group in groups for parameter in group["params"])
    betas = (optim.adamw_beta1, optim.adamw_beta2)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, weight_decay=0.0, fused=fused or None)


def apply_schedule(optimizer: torch.optim.Optimizer, values: StepValues) -> None:
    """Write the step's learning rate and weight decay into every group."""
    for group in optimizer.param_groups:
        lr = values.last_layer_lr if group["is_last_layer"] else values.lr
        group["lr"] = lr * group["lr_multiplier"]
        group["weight_decay"] = values.weight_decay * group["wd_multiplier"]


def _layer(name: str, depth: int) -> int:
    if name.split(".")[0] in (*_TOKENS, "patch_embed"):
        return 0
    match = re.match(r"blocks\.(\d+)\.", name)
    return int(match.group(1)) + 1 if match else depth + 1
