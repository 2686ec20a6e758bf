"""Specs as data: stacks of blocks, depth in proportion, overrides, and what cannot work."""

import pytest

from dinov2.models import BlockGroup, build_backbone, get_spec
from dinov2.models.spec import SpecError


def test_a_group_is_read_from_text():
    assert BlockGroup.parse("12 x mamba_vision + einfft") == BlockGroup("mamba_vision", "einfft", 12)
    assert BlockGroup.parse(" 1 x  attention+mlp ") == BlockGroup("attention", "mlp", 1)


@pytest.mark.parametrize(
    "text", ["", "attention + mlp", "0 x attention + mlp", "-1 x attention + mlp", "2 x attention", "x"]
)
def test_text_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match="is not of the form 'COUNT x SEQUENCE_MIXER"):
        BlockGroup.parse(text)


@pytest.mark.parametrize(("text", "near"), [("2 x atention + mlp", "attention"), ("2 x attention + enfft", "einfft")])
def test_an_unknown_mixer_offers_the_nearest(text, near):
    with pytest.raises(ValueError, match=f"unknown mixer .* did you mean '{near}'"):
        BlockGroup.parse(text)


def test_a_stack_can_be_anything():
    model = build_backbone("mvhybrid", embed_dim=64, num_heads=2, blocks=["1 x hydra + mlp", "2 x attention + einfft"])
    kinds = [
        (type(b.get_submodule(b._sequence)).__name__, type(b.get_submodule(b._channel)).__name__) for b in model.blocks
    ]
    assert kinds == [("Hydra", "Mlp"), ("Attention", "EinFFT"), ("Attention", "EinFFT")]


@pytest.mark.parametrize(
    ("name", "depth", "counts"), [("mvhybrid", 12, [6, 6]), ("hydra_hybrid", 2, [1, 1]), ("vit24", 5, [5])]
)
def test_depth_keeps_the_proportions(name, depth, counts):
    spec = get_spec(name, depth=depth)
    assert spec.depth == depth
    assert [group.count for group in spec.blocks] == counts


@pytest.mark.parametrize(("depth", "near"), [(5, "4|6"), (0, "2"), (-3, "2"), (1, "2")])
def test_a_depth_out_of_proportion_offers_the_nearest(depth, near):
    with pytest.raises(SpecError, match=f"depth = {depth}: .* proportion 12:12; the nearest valid depth is ({near})$"):
        get_spec("mvhybrid", depth=depth)


def test_depth_scales_a_given_stack():
    spec = get_spec("vit12", blocks=["1 x vim + mlp", "3 x attention + mlp"], depth=8)
    assert [group.count for group in spec.blocks] == [2, 6]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_heads": 5}, "num_heads = 5: 5 heads do not divide the width 384; the nearest valid number is (4|6)"),
        ({"num_heads": 0}, "num_heads = 0: must be positive"),
        ({"embed_dim": 0}, "embed_dim = 0: must be positive"),
        (
            {"embed_dim": 30, "num_heads": 2},
            "embed_dim = 30: einfft needs a width divisible by 4; the nearest is (28|32)",
        ),
        ({"blocks": []}, "blocks = .*: there must be at least one block"),
        ({"blocks": [], "depth": 4}, "at least one block"),
        ({"blocks": ["3 attention"]}, "blocks = .*3 attention.* is not of the form"),
        ({"patch_size": 0}, "patch_size = 0: must be at least 1"),
        ({"num_register_tokens": -1}, "num_register_tokens = -1: must be at least 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio = 0.0: must be positive"),
        ({"drop_path_rate": 1.0}, "drop_path_rate = 1.0: must lie in"),
        ({"d_state": 0}, "d_state = 0: must be positive"),
        ({"size": "tinny"}, "size = 'tinny': unknown size; did you mean 'tiny'"),
    ],
)
def test_impossible_values_are_named(overrides, message):
    with pytest.raises(SpecError, match=message):
        get_spec("mvhybrid", **overrides)


def test_the_state_size_reaches_the_scans():
    model = build_backbone("mvhybrid", embed_dim=32, num_heads=2, depth=2, d_state=5)
    assert model.blocks[0].mixer.scan.A_log.shape == (32, 5)
    assert build_backbone("hydra_hybrid", embed_dim=32, num_heads=2, depth=2, d_state=8).blocks[0].mixer.d_state == 8


def test_biases_reach_the_layers():
    model = build_backbone("vit12", embed_dim=32, num_heads=2, depth=1, qkv_bias=False, proj_bias=False, ffn_bias=False)
    block = model.blocks[0]
    assert [block.attn.qkv.bias, block.attn.proj.bias, block.mlp.fc1.bias, block.mlp.fc2.bias] == [None] * 4
