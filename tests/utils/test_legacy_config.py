"""DINOv2's own configuration files and the published MVHybrid's load, with one warning for each legacy key."""

import logging

import pytest

from dinov2.models.factory import spec_from_student
from dinov2.utils.config import ConfigError, config_from_dict, load_config

SHORT = """
train: {dataset_path: 'ImageNet:split=TRAIN', batch_size_per_gpu: 64}
student: {block_chunks: 4}
"""

VITL14 = """
dino: {head_n_prototypes: 131072, head_bottleneck_dim: 384}
ibot: {separate_head: true, head_n_prototypes: 131072}
train: {batch_size_per_gpu: 32, dataset_path: ImageNet22k, centering: sinkhorn_knopp}
student: {arch: vit_large, patch_size: 14, drop_path_rate: 0.4, ffn_layer: swiglufused, block_chunks: 4}
teacher: {momentum_teacher: 0.994}
optim: {epochs: 500, weight_decay_end: 0.2, base_lr: 2.0e-04, warmup_epochs: 80, layerwise_decay: 1.0}
crops: {local_crops_size: 98}
"""

PRECISION = {
    "sharding_strategy": "FULL_SHARD",
    "mixed_precision": {"param_dtype": "fp32", "reduce_dtype": "fp16", "buffer_dtype": "fp16"},
}
MODULES = dict.fromkeys(("backbone", "dino_head", "ibot_head"), PRECISION)

MVHYBRID = {
    "MODEL": {"WEIGHTS": ""},
    "compute_precision": {"grad_scaler": True, "teacher": MODULES, "student": MODULES},
    "train": {"OFFICIAL_EPOCH_LENGTH": 493, "batch_size_per_gpu": 64, "saveckp_freq": 10, "cache_dataset": True},
    "student": {
        "arch": "mamba_vision_S",
        "if_einfft": True,
        "einfft_mamba_only": True,
        "if_mlp": False,
        "num_cls_tokens": 1,
        "if_registers": False,
        "patch_size": 16,
        "drop_path_rate": 0.0,
        "block_chunks": 0,
        "depth": 24,
        "qkv_bias": True,
    },
    "teacher": {"final_momentum_teacher": 1, "teacher_temp": 0.06},
    "optim": {"epochs": 200, "lr": 0.0, "base_lr": 0.002},
    "crops": {"global_crops_size": 256, "local_crops_size": 112},
    "evaluation": {"eval_period_iterations": 2465},
}


def load(tmp_path, text, caplog, overrides=()):
    (tmp_path / "c.yaml").write_text(text)
    with caplog.at_level(logging.WARNING, logger="dinov2"):
        config = load_config(tmp_path / "c.yaml", overrides)
    return config, [record.getMessage() for record in caplog.records]


def about(messages, key):
    return [message for message in messages if message.startswith(f"config: {key} ") or f" {key} " in message]


def test_dinov2s_short_schedule_means_dinov2s_defaults(tmp_path, caplog):
    config, messages = load(tmp_path, SHORT, caplog)
    assert len(about(messages, "student.block_chunks")) == 1
    assert config.student.arch == "vit_large"
    assert (config.crops.global_crops_size, config.crops.local_crops_size) == (224, 96)
    assert (config.optim.epochs, config.optim.base_lr, config.optim.layerwise_decay) == (100, 0.004, 0.9)
    assert (config.train.centering, config.train.OFFICIAL_EPOCH_LENGTH) == ("centering", 1250)
    assert (config.teacher.teacher_temp, config.ibot.separate_head) == (0.07, False)
    spec = spec_from_student(config.student, config.crops.global_crops_size)
    assert (spec.depth, spec.embed_dim, spec.patch_size, spec.layerscale, spec.drop_path_rate) == (
        24,
        1024,
        16,
        1e-5,
        0.3,
    )
    # The values that came from elsewhere than the file are said.
    assert any("crops.global_crops_size=224" in message for message in messages)


def test_dinov2s_vitl14(tmp_path, caplog):
    config, messages = load(tmp_path, VITL14, caplog)
    assert len(about(messages, "student.block_chunks")) == 1
    assert (config.crops.global_crops_size, config.crops.local_crops_size) == (224, 98)
    assert (config.optim.epochs, config.optim.layerwise_decay, config.ibot.separate_head) == (500, 1.0, True)
    spec = spec_from_student(config.student, config.crops.global_crops_size)
    assert [(g.sequence_mixer, g.channel_mixer, g.count) for g in spec.blocks] == [("attention", "swiglu", 24)]


def test_overrides_reach_a_dinov2_file(tmp_path, caplog):
    config, _ = load(tmp_path, VITL14, caplog, ["crops.global_crops_size=252", "optim.epochs=90"])
    assert (config.crops.global_crops_size, config.optim.epochs) == (252, 90)


def test_a_dinov2_file_with_an_empty_section(tmp_path, caplog):
    config, _ = load(tmp_path, "student: {block_chunks: 0}\ncrops:\n", caplog)
    assert config.crops.global_crops_size == 224


def test_the_published_mvhybrid(caplog):
    with caplog.at_level(logging.WARNING, logger="dinov2"):
        config = config_from_dict(MVHYBRID)
    messages = [record.getMessage() for record in caplog.records]
    for key in ("if_einfft", "einfft_mamba_only", "if_mlp", "num_cls_tokens", "if_registers", "block_chunks"):
        assert len(about(messages, f"student.{key}")) == 1, key
    assert len(about(messages, "train.cache_dataset")) == 1
    assert len(about(messages, "optim.lr")) == 1
    assert sum("compute_precision." in message for message in messages) == 1
    assert len(messages) == 9
    assert config.compute_precision.dtype == "fp32"
    assert config.crops.global_crops_size == 256
    assert config.ibot.separate_head  # not DINOv2's default: the file is not DINOv2's
    spec = spec_from_student(config.student, 256)
    assert (spec.name, spec.depth, spec.num_register_tokens) == ("mvhybrid", 24, 0)


def test_the_callers_values_are_left_alone():
    before = str(MVHYBRID)
    config_from_dict(MVHYBRID)
    assert str(MVHYBRID) == before


@pytest.mark.parametrize("asked", ["fp16", "bf16", "fp32"])
def test_the_policy_of_the_students_backbone_is_taken(asked, caplog):
    mixed = {"param_dtype": asked, "reduce_dtype": "fp16", "buffer_dtype": "fp32"}
    backbone = {"sharding_strategy": "SHARD_GRAD_OP", "mixed_precision": mixed}
    head = {"sharding_strategy": "SHARD_GRAD_OP", "mixed_precision": mixed | {"reduce_dtype": "fp32"}}
    student = {"backbone": backbone, "dino_head": head, "ibot_head": backbone}
    config = config_from_dict({"compute_precision": {"grad_scaler": True, "student": student, "teacher": student}})
    assert config.compute_precision.dtype == asked
    parallel = config.parallel
    assert (parallel.strategy, parallel.reduce_dtype, parallel.reshard_after_forward) == ("fsdp", "fp16", False)
    for word in ("buffer_dtype", "grad_scaler", "what differs in student.dino_head, teacher.dino_head"):
        assert word in caplog.text
    assert "ibot_head" not in caplog.text


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("NO_SHARD", ("ddp", True)),
        ("FULL_SHARD", ("fsdp", True)),
        ("SHARD_GRAD_OP", ("fsdp", False)),
        ("HYBRID_SHARD", ("hsdp", True)),
        ("_HYBRID_SHARD_ZERO2", ("hsdp", False)),
    ],
)
def test_sharding_strategies_have_their_counterparts(theirs, ours):
    config = config_from_dict({"compute_precision": {"student": {"backbone": {"sharding_strategy": theirs}}}})
    assert (config.parallel.strategy, config.parallel.reshard_after_forward) == ours


def test_what_is_said_in_our_own_keys_wins():
    policy = {"student": {"backbone": {"sharding_strategy": "NO_SHARD", "mixed_precision": {"param_dtype": "fp16"}}}}
    config = config_from_dict({"compute_precision": {"dtype": "bf16", **policy}, "parallel": {"strategy": "fsdp"}})
    assert (config.compute_precision.dtype, config.parallel.strategy) == ("bf16", "fsdp")


@pytest.mark.parametrize("broken", [{"student": 3}, {"student": {"backbone": "x"}}, {"teacher": {"backbone": None}}])
def test_a_policy_that_is_none_changes_nothing(broken):
    assert config_from_dict({"compute_precision": broken}).parallel.strategy == "auto"


def test_an_explicit_dtype_wins():
    values = {"dtype": "fp32", "student": {"backbone": {"mixed_precision": {"param_dtype": "fp16"}}}}
    assert config_from_dict({"compute_precision": values}).compute_precision.dtype == "fp32"


def test_ffn_layer_swiglu_is_swiglufused():
    values = {"student": {"arch": "vit12", "ffn_layer": "swiglu"}}
    assert config_from_dict(values).student.ffn_layer == "swiglufused"


def test_our_own_files_are_not_taken_for_dinov2s(caplog):
    config = config_from_dict({"student": {"arch": "vit_small", "patch_size": 16}})
    assert config.crops.global_crops_size == 256
    assert not caplog.records


def test_an_unknown_key_beside_legacy_ones_is_still_an_error():
    with pytest.raises(ConfigError, match=r"student\.if_registerz = False: unknown key"):
        config_from_dict({"student": {"if_registerz": False, "if_mlp": False}})
