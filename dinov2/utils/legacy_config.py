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
# FSDP1's names of what is sharded, and when gathered parameters are freed.
_SHARDING: dict[str, dict[str, Any]] = {
    "NO_SHARD": {"parallel.strategy": "ddp"},
    "SHARD_GRAD_OP": {"parallel.strategy": "fsdp", "parallel.reshard_after_forward": False},
    "FULL_SHARD": {"parallel.strategy": "fsdp", "parallel.reshard_after_forward": True},
    "HYBRID_SHARD": {"parallel.strategy": "hsdp", "parallel.reshard_after_forward": True},
    "_HYBRID_SHARD_ZERO2": {"parallel.strategy": "hsdp", "parallel.reshard_after_forward": False},
}


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
    """Map DINOv2's policies of FSDP1, one for each module, to one policy for all: that of the student's backbone."""
    section = values.get("compute_precision")
    if not isinstance(section, dict):
        return
    old = {key: section.pop(key) for key in ("grad_scaler", "teacher", "student") if key in section}
    if not old:
        return
    policy = _at(old, "student", "backbone")
    mixed = _at(policy, "mixed_precision")
    mapped = _given(
        {"compute_precision.dtype": mixed.get("param_dtype"), "parallel.reduce_dtype": mixed.get("reduce_dtype")}
    )
    mapped |= _SHARDING.get(policy.get("sharding_strategy", ""), {})
    for dotted, value in mapped.items():
        name, key = dotted.split(".")
        if not isinstance(values.setdefault(name, {}), dict):
            return  # whatever it is, the schema objects to it
        values[name].setdefault(key, value)
    others = {
        f"{who}.{module}"
        for who in ("student", "teacher")
        for module, other in _at(old, who).items()
        if other != policy
    }
    logger.warning(
        "config: compute_precision.%s: the policy of student.backbone holds for all modules, as %s; ignored are "
        "buffer_dtype (there are no buffers)%s%s",
        "|".join(old),
        ", ".join(f"{key}={value}" for key, value in mapped.items()) or "the defaults here",
        ", grad_scaler (fp16 always has one, nothing else needs it)" if "grad_scaler" in old else "",
        f", and what differs in {', '.join(sorted(others))}" if others else "",
    )


def _at(values: Any, *keys: str) -> dict[str, Any]:
    """Return the mapping below some keys, an empty one where there is none."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
