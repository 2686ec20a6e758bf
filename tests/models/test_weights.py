"""Backbone weights on disk: complete, portable, checked, and safe to read."""

import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from dinov2.models.factory import spec_from_student
from dinov2.models.isotropic import IsotropicBackbone
from dinov2.models.weights import load_backbone, reinitialised, save_backbone
from dinov2.utils.config import config_from_dict, to_yaml
from dinov2.utils.errors import CheckpointError
from dinov2.utils.hashing import hash_weights

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def config_of(arch="mvhybrid", **student):
    return config_from_dict(
        {
            "student": {"arch": arch, "embed_dim": 32, "num_heads": 2, "depth": 2, **student},
            "crops": {
                "global_crops_size": 64,
                "local_crops_size": 32,
                "normalize": {"mean": list(MEAN), "std": list(STD)},
            },
            "evaluation": {"input_size": 96},
        }
    )


def model_of(config, seed=0):
    torch.manual_seed(seed)
    model = IsotropicBackbone(spec_from_student(config.student, config.crops.global_crops_size))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def saved(tmp_path):
    """A run folder with a backbone's file, and the model that was written."""
    config = config_of()
    model = model_of(config)
    (tmp_path / "run").mkdir()
    save_backbone(tmp_path / "run" / "teacher.safetensors", model.state_dict(), config, iteration=7)
    return tmp_path / "run", model


@pytest.mark.parametrize("arch", ["vit12", "mvhybrid", "hydra_einfft", "vim_einfft"])
def test_round_trip(tmp_path, arch):
    config = config_of(arch, num_register_tokens=1)
    model = model_of(config)
    save_backbone(tmp_path / "t.safetensors", model.state_dict(), config, iteration=7)
    loaded = load_backbone(tmp_path / "t.safetensors")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.model(x), model(x))
    assert not loaded.model.training
    assert loaded.name == arch
    assert loaded.weights_hash == hash_weights(model)


def test_a_file_moved_alone_keeps_its_statistics_and_size(saved, tmp_path):
    run, model = saved
    alone = tmp_path / "elsewhere" / "renamed.safetensors"
    alone.parent.mkdir()
    shutil.copy(run / "teacher.safetensors", alone)
    shutil.rmtree(run)
    loaded = load_backbone(str(alone))
    assert (loaded.mean, loaded.std, loaded.input_size) == (MEAN, STD, 96)
    assert loaded.weights_hash == hash_weights(model)


def test_the_input_size_falls_back_to_the_crops(tmp_path):
    config = config_of()
    config.evaluation.input_size = None
    save_backbone(tmp_path / "t.safetensors", model_of(config).state_dict(), config, 0)
    assert load_backbone(tmp_path / "t.safetensors").input_size == 64


def test_a_run_folder_serves_as_well(saved):
    run, model = saved
    assert load_backbone(run).weights_hash == hash_weights(model)


def test_saving_leaves_only_the_file(saved):
    assert [path.name for path in saved[0].iterdir()] == ["teacher.safetensors"]


def test_a_missing_file_and_an_empty_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing.safetensors' does not exist"):
        load_backbone(tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no teacher\.safetensors"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"\xff" * 64])
def test_not_a_safetensors_file(tmp_path, content):
    (tmp_path / "t.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
        load_backbone(tmp_path / "t.safetensors")


def test_a_truncated_file(saved):
    file = saved[0] / "teacher.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
        load_backbone(file)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "dinov2-pathology-backbone"}])
def test_a_safetensors_file_of_another_program(tmp_path, metadata):
    save_file({"weight": torch.zeros(2)}, tmp_path / "t.safetensors", metadata)
    with pytest.raises(CheckpointError, match="carries no configuration in its metadata"):
        load_backbone(tmp_path / "t.safetensors")


def test_weights_of_another_architecture_list_the_keys(tmp_path):
    state = model_of(config_of("vit12")).state_dict()
    save_backbone(tmp_path / "t.safetensors", state, config_of("mvhybrid"), 0)
    with pytest.raises(CheckpointError, match="another architecture than mvhybrid") as error:
        load_backbone(tmp_path / "t.safetensors")
    assert "missing blocks.0.mixer.in_proj.weight" in str(error.value)
    assert " more" in str(error.value)


def test_an_unexpected_key_and_a_wrong_shape_are_named(tmp_path):
    config = config_of()
    state = model_of(config).state_dict()
    state["extra"] = torch.zeros(1)
    state["norm.weight"] = torch.zeros(33)
    save_backbone(tmp_path / "t.safetensors", state, config, 0)
    with pytest.raises(CheckpointError) as error:
        load_backbone(tmp_path / "t.safetensors")
    assert "unexpected extra" in str(error.value)
    assert "norm.weight has shape (33,) where mvhybrid has (32,)" in str(error.value)


def test_reinitialised_keeps_everything_but_the_weights(saved):
    loaded = load_backbone(saved[0])
    before = torch.get_rng_state()
    fresh, again, other = reinitialised(loaded), reinitialised(loaded), reinitialised(loaded, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert (fresh.mean, fresh.std, fresh.input_size, fresh.name) == (MEAN, STD, 96, "mvhybrid")
    assert fresh.model.spec == loaded.model.spec
    assert len({loaded.weights_hash, fresh.weights_hash, other.weights_hash}) == 3
    assert fresh.weights_hash == again.weights_hash
    assert not fresh.model.training


def dinov2_checkpoint(folder, config, model, chunk=None):
    """DINOv2's layout: RUN/config.yaml and RUN/eval/training_N/teacher_checkpoint.pth."""
    teacher = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if chunk and parts[0] == "blocks":
            parts.insert(1, str(int(parts[1]) // chunk))
        teacher[f"backbone.{'.'.join(parts)}"] = tensor
    teacher["dino_head.mlp.0.weight"] = torch.zeros(3, 3)
    path = folder / "run" / "eval" / "training_9" / "teacher_checkpoint.pth"
    path.parent.mkdir(parents=True)
    torch.save({"teacher": teacher}, path)
    (folder / "run" / "config.yaml").write_text(config)
    return path


LEGACY = """
student: {arch: vit_small, patch_size: 14, embed_dim: 32, num_heads: 2, depth: 4, block_chunks: 2, layerscale: 1.0}
crops: {global_crops_size: 56, local_crops_size: 28}
"""


@pytest.mark.parametrize("chunk", [None, 2])
def test_dinov2s_own_checkpoint(tmp_path, chunk):
    config = config_from_dict(
        {
            "student": {"arch": "vit_small", "patch_size": 14, "embed_dim": 32, "num_heads": 2, "depth": 4},
            "crops": {"global_crops_size": 56, "local_crops_size": 28},
        }
    )
    model = model_of(config)
    loaded = load_backbone(dinov2_checkpoint(tmp_path, LEGACY, model, chunk))
    x = torch.randn(1, 3, 56, 56)
    assert torch.equal(loaded.model(x), model(x))
    assert loaded.mean == (0.485, 0.456, 0.406)
    assert loaded.std == (0.229, 0.224, 0.225)
    assert loaded.input_size == 56


def test_a_config_with_statistics_is_obeyed(tmp_path):
    config = config_of("vit12")
    path = dinov2_checkpoint(tmp_path, to_yaml(config), model_of(config))
    assert load_backbone(path).mean == MEAN


def test_a_pth_without_config(tmp_path):
    folder = tmp_path / "a" / "b" / "c" / "d"
    folder.mkdir(parents=True)
    torch.save({"teacher": {"backbone.norm.weight": torch.zeros(2)}}, folder / "teacher_checkpoint.pth")
    with pytest.raises(CheckpointError, match=r"no config\.yaml in the three folders above"):
        load_backbone(folder / "teacher_checkpoint.pth")


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "student: [", "student: {archh: vit12}"])
def test_a_pth_with_an_unusable_config(tmp_path, content):
    config = config_of("vit12")
    path = dinov2_checkpoint(tmp_path, content, model_of(config))
    with pytest.raises(CheckpointError):
        load_backbone(path)


@pytest.mark.parametrize("content", [[1, 2], {"teacher": 3}, torch.zeros(2)])
def test_a_pth_with_something_else_in_it(tmp_path, content):
    path = dinov2_checkpoint(tmp_path, LEGACY, model_of(config_of("vit12")))
    torch.save(content, path)
    with pytest.raises(CheckpointError):
        load_backbone(path)


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_code_in_a_pth_is_not_run(tmp_path):
    path = dinov2_checkpoint(tmp_path, LEGACY, model_of(config_of("vit12")))
    torch.save({"teacher": Bomb(tmp_path / "exploded")}, path)
    with pytest.raises(CheckpointError, match="cannot be loaded as plain tensors"):
        load_backbone(path)
    assert not (tmp_path / "exploded").exists()
