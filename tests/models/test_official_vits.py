"""DINOv2's vision transformers against timm's, with the same weights under Facebook Research's names."""

import pytest
import timm
import torch
import torch.nn.functional as F

from dinov2.models import build_backbone
from dinov2.models.weights import load_backbone
from dinov2.utils.errors import CheckpointError

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
NAMES = {0: "vit_small_patch14_dinov2", 4: "vit_small_patch14_reg4_dinov2"}


def official_state(arch="vit_small", registers=0, **overrides):
    """A state dict as Facebook Research publishes them, with values at random."""
    torch.manual_seed(0)
    model = build_backbone(arch, num_register_tokens=registers, **overrides)
    return {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}


def saved(tmp_path, state, name="dinov2_pretrain.pth"):
    torch.save(state, tmp_path / name)
    return tmp_path / name


def timms(name, path, **arguments):
    """timm's model with the weights of an official file, converted by timm itself."""
    overlay = {"file": str(path), "source": None, "num_classes": 0}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **arguments).eval()


def assert_tokens_agree(ours, theirs, size):
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out, expected = ours.forward_features(x), theirs.forward_features(x)
    first = theirs.num_prefix_tokens
    assert expected.shape[1] == first + (size // 14) ** 2
    torch.testing.assert_close(out["x_norm_clstoken"], expected[:, 0], **TOLERANCE)
    torch.testing.assert_close(out["x_norm_regtokens"], expected[:, 1:first], **TOLERANCE)
    torch.testing.assert_close(out["x_norm_patchtokens"], expected[:, first:], **TOLERANCE)


@pytest.mark.parametrize(("registers", "size"), [(0, 518), (4, 518), (4, 224)])
def test_the_small_models_give_timms_tokens(tmp_path, registers, size):
    path = saved(tmp_path, official_state(registers=registers))
    assert_tokens_agree(load_backbone(path).model, timms(NAMES[registers], path, img_size=size), size)


def test_without_registers_other_sizes_follow_facebook_researchs_rule(tmp_path):
    """Bicubic without antialiasing, by the scale (16 + 0.1) / 37; timm's own rule is another."""
    state = official_state(depth=1)
    path = saved(tmp_path, state)
    theirs = timms(NAMES[0], path, img_size=224, depth=1)
    grid = state["pos_embed"][:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic")
    assert resized.shape[-2:] == (16, 16)
    rule = torch.cat([state["pos_embed"][:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    assert (rule - theirs.pos_embed).abs().max() > 0.01
    theirs.pos_embed.data = rule
    assert_tokens_agree(load_backbone(path).model, theirs, 224)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("size", ["base", "large"])
def test_the_wider_models_are_timms(tmp_path, size, registers):
    """One block of each, with a small grid of positions."""
    path = saved(tmp_path, official_state(f"vit_{size}", registers, depth=1, img_size=112))
    name = NAMES[registers].replace("small", size)
    assert_tokens_agree(load_backbone(path).model, timms(name, path, img_size=112, depth=1), 112)


@pytest.mark.parametrize(("registers", "name"), [(0, "vit_giant_patch14_dinov2"), (4, "vit_giant_patch14_reg4_dinov2")])
def test_swiglu_is_timms(tmp_path, registers, name):
    path = saved(tmp_path, official_state("vit_giant2", registers, depth=1, img_size=112))
    loaded = load_backbone(path)
    assert (loaded.name, loaded.model.spec.num_heads) == ("vit_giant2", 24)
    assert_tokens_agree(loaded.model, timms(name, path, img_size=112, depth=1), 112)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize(("arch", "heads"), [("vit_small", 6), ("vit_base", 12), ("vit_large", 16)])
def test_a_file_without_configuration_tells_all(tmp_path, arch, heads, registers):
    depth = 2 if heads < 16 else 1
    loaded = load_backbone(saved(tmp_path, official_state(arch, registers, depth=depth)))
    spec = loaded.model.spec
    assert (loaded.name, spec.depth, spec.num_register_tokens, spec.patch_size) == (arch, depth, registers, 14)
    assert (spec.num_heads, spec.embed_dim) == (heads, 64 * heads)
    assert spec.img_size == 518
    assert loaded.model.pos_embed.shape[1] == 37 * 37 + 1
    assert (spec.interpolate_antialias, spec.interpolate_offset) == ((True, 0.0) if registers else (False, 0.1))
    assert (loaded.mean, loaded.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert loaded.input_size == 224
    assert (loaded.origin, loaded.iteration) == ("imported", None)


def test_a_configuration_in_a_folder_above_is_not_taken_for_it(tmp_path):
    (tmp_path / "config.yaml").write_text("student: {arch: mvhybrid}")
    (tmp_path / "weights").mkdir()
    path = saved(tmp_path / "weights", official_state(depth=1))
    assert load_backbone(path).name == "vit_small"


@pytest.mark.parametrize("lost", ["mask_token", "blocks.0.ls2.gamma"])
def test_loading_is_strict(tmp_path, lost):
    state = official_state(depth=1)
    del state[lost]
    with pytest.raises(CheckpointError, match=f"missing {lost}"):
        load_backbone(saved(tmp_path, state))


def test_a_width_that_heads_do_not_divide_is_named(tmp_path):
    path = saved(tmp_path, official_state(depth=1, embed_dim=96, num_heads=2))
    with pytest.raises(CheckpointError, match="width 96: DINOv2's heads are 64 channels wide"):
        load_backbone(path)


def test_positions_without_a_square_grid_are_named(tmp_path):
    state = official_state(depth=1)
    state["pos_embed"] = state["pos_embed"][:, :-1]
    with pytest.raises(CheckpointError, match="pos_embed has 1368 patches; expected the square"):
        load_backbone(saved(tmp_path, state))


def test_state_dict_has_dinov2s_names():
    with torch.device("meta"):
        names = set(build_backbone("vit_small", depth=1, num_register_tokens=4).state_dict())
    block = {
        f"blocks.0.{part}.{kind}"
        for part in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    }
    assert names == block | {
        "cls_token", "mask_token", "pos_embed", "register_tokens", "patch_embed.proj.weight", "patch_embed.proj.bias",
        "blocks.0.ls1.gamma", "blocks.0.ls2.gamma", "norm.weight", "norm.bias",
    }  # fmt: skip
