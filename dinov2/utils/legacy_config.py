"""Keys of DINOv2's and the published MVHybrid's configurations that have another name here, or none."""

import copy
import logging
from typing import Any

logger = logging.getLogger("dinov2")

# Keys without an effect here, and why.
_IGNORED = {
    "train.cache_dataset": "tiles are read as they are needed",
    "student.block_chunks": "blocks are sharded one by one",
    "student.if_mlp": "student.arch and student.blocks say which blocks have an MLP",
    "student.if_einfft": "student.arch and student.blocks say which blocks have EinFFT",
    "student.einfft_mamba_only": "student.arch and student.blocks say which blocks have EinFFT",
    "student.num_cls_tokens": "there is always one CLS token",
    "optim.lr": "the learning rate follows from optim.base_lr by optim.scaling_rule",
}
# What DINOv2's files leave to its own defaults, where ours differ.
_DINOV2_DEFAULTS: dict[str, dict[str, Any]] = {
    "ibot": {"separate_head": False},
    "train": {"OFFICIAL_EPOCH_LENGTH": 1250, "centering": "centering"},
    "student": {"arch": "vit_large", "drop_path_rate": 0.3, "layerscale": 1e-5},
    "teacher": {"teacher_temp": 0.07},
    "optim": {"epochs": 100, "base_lr": 0.004, "layerwise_decay": 0.9},
    "crops": {"global_crops_size": 224, "local_crops_size": 96},
}
_DTYPES = {"fp16": "bf16", "bf16": "bf16", "fp32": "fp32"}


def translate_legacy(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with old keys mapped to ours or dropped, with one warning each."""
    values = copy.deepcopy(values)
    _fill_dinov2_defaults(values)
    for dotted, reason in _IGNORED.items():
        section, key = dotted.split(".")
        if isinstance(values.get(section), dict) and key in values[section]:
            del values[section][key]
            logger.warning("config: %s is ignored: %s", dotted, reason)
    _translate_registers(values)
    _translate_precision(values)
    if isinstance(student := values.get("student"), dict) and student.get("ffn_layer") == "swiglu":
        student["ffn_layer"] = "swiglufused"
    return values


def _fill_dinov2_defaults(values: dict[str, Any]) -> None:
    """Complete a file written for DINOv2, known by `block_chunks` and a ViT, with DINOv2's defaults."""
    student = values.get("student")
    if not isinstance(student, dict) or "block_chunks" not in student:
        return
    if not str(student.get("arch", "vit_large")).startswith("vit_"):
        return
    filled = []
    for section, defaults in _DINOV2_DEFAULTS.items():
        given = values.get(section) or {}
        if not isinstance(given, dict):
            continue
        missing = {key: value for key, value in defaults.items() if key not in given}
        values[section] = given | missing
        filled += [f"{section}.{key}={value}" for key, value in missing.items()]
    if filled:
        logger.warning("config: a DINOv2 file (student.block_chunks): its defaults hold, %s", ", ".join(filled))


def _translate_registers(values: dict[str, Any]) -> None:
    student = values.get("student")
    if isinstance(student, dict) and "if_registers" in student:
        wanted = student.pop("if_registers")
        logger.warning("config: student.if_registers is replaced by student.num_register_tokens")
        if not wanted:
            student["num_register_tokens"] = 0


def _translate_precision(values: dict[str, Any]) -> None:
    """Map DINOv2's per-module mixed precision to one dtype, that of the student's backbone."""
    section = values.get("compute_precision")
    if not isinstance(section, dict):
        return
    old = {key: section.pop(key) for key in ("grad_scaler", "teacher", "student") if key in section}
    if not old:
        return
    try:
        asked = old["student"]["backbone"]["mixed_precision"]["param_dtype"]
    except (KeyError, TypeError):
        asked = None
    if asked in _DTYPES:
        section.setdefault("dtype", _DTYPES[asked])
    logger.warning(
        "config: compute_precision.%s: one dtype serves all modules here, compute_precision.dtype=%s",
        "|".join(old),
        section.get("dtype", "auto"),
    )
