"""Our backbones as encoders; the checkpoint is written from fresh weights, so that no training is needed."""

import shutil

import numpy as np
import pytest
import torch

from dinov2.models import weights
from dinov2.models.factory import spec_from_student
from dinov2.models.isotropic import IsotropicBackbone
from dinov2.utils.schema import SSLConfig
from eval.encoders import encoder_key, make_encoder
from eval.errors import EvalError

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def checkpoint(tmp_path):
    """A teacher.safetensors with a transform of its own."""
    return write_checkpoint(tmp_path / "run" / "teacher.safetensors")


def write_checkpoint(path, mean=(0.1, 0.2, 0.3)):
    config = SSLConfig()
    config.student.arch, config.student.size = "mvhybrid", "tiny"
    config.crops.normalize.mean, config.crops.normalize.std = mean, (0.4, 0.5, 0.6)
    config.crops.global_crops_size = 48
    torch.manual_seed(0)
    model = IsotropicBackbone(spec_from_student(config.student, 48))
    path.parent.mkdir(parents=True, exist_ok=True)
    weights.save_backbone(path, model.state_dict(), config, 7)
    return path


def test_checkpoint_brings_its_own_transform(checkpoint, tmp_path):
    settings = make_encoder(f"checkpoint:{checkpoint}").settings
    assert settings["mean"] == [0.1, 0.2, 0.3]
    assert settings["std"] == [0.4, 0.5, 0.6]
    assert settings["input_size"] == 48
    alone = shutil.move(checkpoint, tmp_path / "moved.safetensors")
    assert make_encoder(f"checkpoint:{alone}").settings == settings


@pytest.mark.parametrize(("pooling", "width"), [("cls", 192), ("mean", 192), ("cls+mean", 384)])
def test_pooling(checkpoint, pooling, width):
    encoder = make_encoder(f"checkpoint:{checkpoint}", pooling=pooling)
    out = encoder.embed(IMAGES)
    assert out.shape == (2, width)
    with torch.inference_mode():
        tokens = encoder.model(encoder.transform(torch.from_numpy(IMAGES)), is_training=True)
    cls, mean = tokens["x_norm_clstoken"], tokens["x_norm_patchtokens"].mean(1)
    expected = {"cls": [cls], "mean": [mean], "cls+mean": [cls, mean]}[pooling]
    np.testing.assert_allclose(out, torch.cat(expected, 1), atol=1e-5)


def test_key_follows_the_transform_as_well_as_the_weights(checkpoint, tmp_path):
    other = write_checkpoint(tmp_path / "other.safetensors", mean=(0.1, 0.2, 0.4))
    first, second = (make_encoder(f"checkpoint:{p}") for p in (checkpoint, other))
    assert first.settings["weights_hash"] == second.settings["weights_hash"]
    assert encoder_key(first) != encoder_key(second)


def test_random_name_uses_the_papers_normalisation_and_the_seed():
    first, again, other = (make_encoder("random:mvhybrid_tiny", seed=s) for s in (0, 0, 1))
    assert first.settings == again.settings
    assert first.settings["weights_hash"] != other.settings["weights_hash"]
    assert first.settings["mean"] == [0.70322989, 0.53606487, 0.66096631]
    assert first.settings["input_size"] == 224


def test_random_path_keeps_the_checkpoints_transform_but_not_its_weights(checkpoint):
    trained = make_encoder(f"checkpoint:{checkpoint}")
    random = make_encoder(f"random:{checkpoint}", seed=1)
    assert random.settings["mean"] == [0.1, 0.2, 0.3]
    assert random.settings["input_size"] == 48
    assert random.settings["weights_hash"] != trained.settings["weights_hash"]
    assert encoder_key(make_encoder(f"random:{checkpoint}", seed=1)) == encoder_key(random)
    assert encoder_key(make_encoder(f"random:{checkpoint}", seed=2)) != encoder_key(random)


def test_unknown_architecture_and_missing_path():
    with pytest.raises(EvalError, match="mvhybrid"):
        make_encoder("random:mvhibrid")
    with pytest.raises(EvalError, match="no such file"):
        make_encoder("random:runs/absent/teacher.safetensors")
