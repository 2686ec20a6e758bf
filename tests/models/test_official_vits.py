"""DINOv2's vision transformers against timm's, with the same weights."""

import pytest
import timm
import torch

from dinov2.models import build_backbone

IMG = 56


def pair(registers, channel_mixer="mlp"):
    """Two blocks of ViT-S/14 and timm's model of the same shape, holding the same values."""
    torch.manual_seed(0)
    ours = build_backbone(
        "vit_small", blocks=[f"2 x attention + {channel_mixer}"], img_size=IMG, num_register_tokens=registers
    )
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    extra = {}
    if channel_mixer == "swiglu":
        extra = {"mlp_layer": timm.layers.SwiGLUPacked, "mlp_ratio": 2.66667 * 2, "act_layer": torch.nn.SiLU}
    theirs = timm.create_model(name, pretrained=False, depth=2, img_size=IMG, num_classes=0, **extra)
    state = {key: value for key, value in ours.state_dict().items() if key != "mask_token"}
    if registers:
        # timm has no position for CLS there; DINOv2 adds it, so it moves into the token.
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
        state["reg_token"] = state.pop("register_tokens")
    state = {key.replace("w12", "fc1").replace("w3", "fc2"): value for key, value in state.items()}
    theirs.load_state_dict(state, strict=True)
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize(("registers", "channel_mixer"), [(0, "mlp"), (4, "mlp"), (0, "swiglu")])
def test_tokens_are_timms(registers, channel_mixer):
    ours, theirs = pair(registers, channel_mixer)
    x = torch.randn(2, 3, IMG, IMG)
    out, expected = ours.forward_features(x), theirs.forward_features(x)
    torch.testing.assert_close(out["x_norm_clstoken"], expected[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out["x_norm_regtokens"], expected[:, 1 : 1 + registers], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out["x_norm_patchtokens"], expected[:, 1 + registers :], rtol=1e-4, atol=1e-4)


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
