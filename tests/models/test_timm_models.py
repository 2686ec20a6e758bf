"""The backbones as models of timm, however and whenever timm is imported."""

import subprocess
import sys

import pytest
import timm
import torch

from dinov2.models import build_backbone
from dinov2.models.timm_models import timm_names
from dinov2.models.weights import save_backbone
from dinov2.utils.config import config_from_dict

SIX = ("vit12", "vit24", "vim_einfft", "hydra_einfft", "hydra_hybrid", "mvhybrid")
TINY = {"embed_dim": 64, "num_heads": 2, "depth": 2}


def images(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def saved(folder, arch="mvhybrid", crops=64, **student):
    """A teacher file, and the model in it."""
    config = config_from_dict(
        {
            "student": {"arch": arch, **TINY, **student},
            "crops": {"global_crops_size": crops, "local_crops_size": 32},
        }
    )
    torch.manual_seed(0)
    model = build_backbone(arch, **TINY, img_size=crops, **student).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_backbone(folder / "teacher.safetensors", model.state_dict(), config, 0)
    return folder / "teacher.safetensors", model


def test_every_backbone_is_there_in_every_size():
    known = set(timm.list_models())
    assert {f"{name}_{size}" for name in SIX for size in ("tiny", "small", "base")} <= known
    assert {"vit_small", "vit_base", "vit_large", "vit_giant2"} <= known
    assert set(timm.list_models(module="timm_models")) == set(timm_names())
    assert timm.is_model("vit_small_patch16_224")  # timm's own are still there


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("name", SIX)
def test_tokens_are_the_backbones_in_timms_order(tmp_path, name, registers):
    path, ours = saved(tmp_path, name, num_register_tokens=registers)
    arguments = {**TINY, "num_register_tokens": registers, "img_size": 64}
    model = timm.create_model(f"{name}_small", checkpoint_path=str(path), **arguments).eval()
    x = images(2, 3, 48, 80)
    with torch.no_grad():
        tokens, out = model.forward_features(x), ours.forward_features(x)
        assert torch.equal(model(x), out["x_norm_clstoken"])
        assert torch.equal(model.forward_head(tokens), out["x_norm_clstoken"])
    assert tokens.shape == (2, 1 + registers + 15, 64)
    assert model.num_prefix_tokens == 1 + registers
    assert torch.equal(tokens[:, 0], out["x_norm_clstoken"])
    assert torch.equal(tokens[:, 1 : 1 + registers], out["x_norm_regtokens"])
    assert torch.equal(tokens[:, 1 + registers :], out["x_norm_patchtokens"])
    assert not timm.create_model(f"{name}_small", **arguments)(x).equal(out["x_norm_clstoken"])


def test_pooling_and_head():
    torch.manual_seed(0)
    model = timm.create_model("mvhybrid_small", num_classes=5, global_pool="avg", num_register_tokens=2, **TINY).eval()
    x = images(2, 3, 32, 32)
    tokens = model.forward_features(x)
    mean = tokens[:, 3:].mean(1)
    torch.testing.assert_close(model(x), mean @ model.head.weight.T + model.head.bias)
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), mean)
    assert (model.num_classes, model.global_pool, model.get_classifier()) == (5, "avg", model.head)
    assert model.num_features == model.head_hidden_size == 64
    model.reset_classifier(0, "")
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    assert torch.equal(model(x), tokens)
    model.reset_classifier(7)
    assert model(x).shape == (2, 1 + 2 + 4, 7)
    model.reset_classifier(7, "token")
    assert model(x).shape == (2, 7)


def test_dropout_acts_in_training_only():
    model = timm.create_model("mvhybrid_small", num_classes=5, drop_rate=0.5, **TINY)
    x = images(1, 3, 32, 32)
    tokens = model.eval().forward_features(x)
    assert torch.equal(model.forward_head(tokens), model.forward_head(tokens))
    model.train()
    assert not torch.equal(model.forward_head(tokens), model.forward_head(tokens))


def test_a_model_trains():
    model = timm.create_model("mvhybrid_small", num_classes=3, **TINY)
    model(images(2, 3, 32, 32)).square().sum().backward()
    assert model.head.weight.grad.any()
    assert model.blocks[0].mixer.scan.A_log.grad.any()


@pytest.mark.parametrize("img_size", [None, 32, (64, 64), 128])
def test_a_checkpoint_brings_its_grid_of_positions(tmp_path, img_size):
    path, ours = saved(tmp_path, "vit12", crops=96)
    model = timm.create_model("vit12_small", checkpoint_path=str(path), img_size=img_size, **TINY).eval()
    assert model.pos_embed.shape == (1, 37, 64)
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), ours(x))


def test_a_checkpoint_of_another_architecture_does_not_load(tmp_path):
    path, _ = saved(tmp_path, "vit12")
    with pytest.raises(RuntimeError, match=r"Missing key.*mixer"):
        timm.create_model("mvhybrid_small", checkpoint_path=str(path), **TINY)
    with pytest.raises(RuntimeError, match="size mismatch"):
        timm.create_model("vit12_small", checkpoint_path=str(path), **(TINY | {"embed_dim": 32}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_chans": 4}, "in_chans = 4"),
        ({"img_size": (32, 64)}, "square grids"),
        ({"global_pool": "max"}, "global_pool = 'max'; choose one of"),
        ({"dept": 4}, "unknown option 'dept'; did you mean 'depth'"),
        ({"features_only": True}, "features_only is not offered"),
    ],
)
def test_impossible_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("vit12_tiny", **{"depth": 1, **arguments})


def test_data_configuration_without_a_checkpoint():
    config = timm.data.resolve_model_data_config(timm.create_model("mvhybrid_tiny", depth=2))
    assert config["mean"] == (0.70322989, 0.53606487, 0.66096631)
    assert (config["input_size"], config["crop_pct"], config["interpolation"]) == ((3, 256, 256), 1.0, "bicubic")
    official = timm.data.resolve_model_data_config(timm.create_model("vit_small", depth=1))
    assert (official["mean"], official["input_size"]) == ((0.485, 0.456, 0.406), (3, 224, 224))


ORDERS = {
    "timm first": "import timm; assert not timm.is_model('mvhybrid_tiny'); import dinov2.models",
    "timm last": "import dinov2.models; assert 'timm' not in sys.modules; import timm",
    "a part of timm last": "import dinov2.models; from timm.models import create_model; import timm",
    "twice, with a search in between": (
        "import dinov2.models, importlib.util; from dinov2.models.timm_hook import install; install(); "
        "assert sum(type(f).__name__ == '_TimmFinder' for f in sys.meta_path) == 1; "
        "importlib.util.find_spec('timm'); import timm; install()"
    ),
}


@pytest.mark.parametrize("order", ORDERS)
def test_names_are_there_in_whichever_order_of_imports(order):
    code = f"import sys, warnings; warnings.simplefilter('error', UserWarning); {ORDERS[order]}; "
    code += "print(len(timm.list_models(module='timm_models')), timm.is_model('resnet50'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["22", "True"]


def test_without_timm_the_package_works_and_says_what_python_says():
    code = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "timm":
            raise ModuleNotFoundError("No module named 'timm'", name="timm")
sys.meta_path.insert(0, Hidden())
import dinov2.models
try:
    import timm
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "No module named 'timm'", done.stderr
