"""The numbers that the papers state about each backbone."""

import math

import pytest
import torch

from dinov2.layers.einfft import EinFFT
from dinov2.layers.layer_scale import LayerScale
from dinov2.models import IsotropicBackbone, get_spec
from dinov2.models.flops import count_parameters

BLOCKS = {
    "vit12": ["attention+mlp"] * 12,
    "vit24": ["attention+mlp"] * 24,
    "vim_einfft": ["vim+einfft"] * 24,
    "hydra_einfft": ["hydra+einfft"] * 24,
    "hydra_hybrid": ["hydra+einfft"] * 12 + ["attention+mlp"] * 12,
    "mvhybrid": ["mamba_vision+einfft"] * 12 + ["attention+mlp"] * 12,
}


def on_meta(name, **overrides):
    with torch.device("meta"):
        return IsotropicBackbone(get_spec(name, **overrides))


@pytest.mark.parametrize("name", BLOCKS)
def test_stack_width_and_patch(name):
    spec = get_spec(name)
    assert [f"{g.sequence_mixer}+{g.channel_mixer}" for g in spec.blocks for _ in range(g.count)] == BLOCKS[name]
    assert (spec.embed_dim, spec.num_heads, spec.patch_size, spec.mlp_ratio) == (384, 6, 16, 4.0)


@pytest.mark.parametrize("name", BLOCKS)
def test_tokens_norms_and_layer_scale(name):
    spec, is_vit = get_spec(name), name.startswith("vit")
    assert spec.cls_position == ("first" if is_vit else "middle")
    assert spec.pos_embed == ("none" if name == "mvhybrid" else "learned")
    assert spec.norm_eps == (1e-6 if is_vit else 1e-5)
    assert spec.layerscale == (1e-5 if is_vit else None)
    model = on_meta(name)
    assert any(isinstance(m, LayerScale) for m in model.modules()) == is_vit
    norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 2 * spec.depth + 1
    assert {m.eps for m in norms} == {spec.norm_eps}


def closed_form(name, dim=384, grid=16):
    """Parameters, from the definitions of the layers."""
    rank, inner, states = dim // 16, 2 * dim, 16
    heads, hydra_states = inner // 64, 64
    mixed = inner + 4 * hydra_states
    norms = 2 * 2 * dim
    parts = {
        "attention": 4 * dim * dim + 4 * dim,
        "mlp": 8 * dim * dim + 5 * dim,
        "einfft": 2 * 2 * (dim * dim // 4 + dim),
        "mamba_vision": 2 * dim * dim  # in_proj
        + 2 * 4 * dim  # convolutions
        + dim * (rank + 2 * states)
        + rank * dim
        + dim  # bias of delta
        + dim * states
        + dim
        + 2 * dim * dim,
        "vim": 2 * inner * dim
        + 2 * (5 * inner + inner * (rank + 2 * states) + rank * inner + inner + inner * states + inner)
        + inner * dim,
        "hydra": dim * (inner + mixed + 2 * heads) + 8 * mixed + 3 * heads + inner * heads + inner + inner * dim,
    }
    total = sum(sum(parts[part] for part in block.split("+")) + norms for block in BLOCKS[name])
    total += 3 * 256 * dim + dim + 2 * dim + 2 * dim  # patches, CLS and mask token, last norm
    total += 2 * dim * len(BLOCKS[name]) if name.startswith("vit") else 0
    return total + (0 if name == "mvhybrid" else (grid * grid + 1) * dim)


@pytest.mark.parametrize("name", BLOCKS)
def test_number_of_parameters(name):
    assert count_parameters(on_meta(name)) == closed_form(name)


@pytest.mark.parametrize(
    ("name", "millions"), [("vit_small", 22.06), ("vit_base", 86.58), ("vit_large", 304.37), ("vit_giant2", 1136.48)]
)
def test_official_architectures_have_the_published_number_of_parameters(name, millions):
    model = on_meta(name)
    # The mask token is ours and DINOv2's, but not in the tables.
    assert (count_parameters(model) - model.embed_dim) / 1e6 == pytest.approx(millions, abs=0.006)
    assert model.pos_embed.shape[1] == 37 * 37 + 1
    assert (model.spec.norm_eps, model.spec.layerscale, model.patch_size) == (1e-6, 1.0, 14)


@pytest.mark.parametrize("name", ["mvhybrid", "vim_einfft"])
def test_a_starts_at_minus_one_to_minus_sixteen(name):
    model = IsotropicBackbone(get_spec(name, embed_dim=32, num_heads=2, depth=2))
    found = [p for n, p in model.named_parameters() if n.endswith("A_log")]
    assert found
    for parameter in found:
        torch.testing.assert_close(parameter.detach(), torch.arange(1.0, 17).log().expand(len(parameter), 16))


@pytest.mark.parametrize("name", ["mvhybrid", "vim_einfft"])
def test_dt_init_published_redraws_delta_and_mamba_keeps_it(name):
    torch.manual_seed(0)
    for choice in ("published", "mamba"):
        model = IsotropicBackbone(get_spec(name, embed_dim=384, num_heads=2, depth=2, dt_init=choice))
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("dt_proj.weight"):
                std = 0.02 if choice == "published" else 24**-0.5 / math.sqrt(3)
                assert parameter.std().item() == pytest.approx(std, rel=0.05)
            if parameter_name.endswith("dt_bias"):
                assert parameter.any().item() == (choice == "mamba")


def test_einfft_has_four_blocks():
    layers = [m for m in on_meta("mvhybrid").modules() if isinstance(m, EinFFT)]
    assert len(layers) == 12
    assert {m.complex_weight_1.shape for m in layers} == {(2, 4, 96, 96)}
