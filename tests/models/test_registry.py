"""Names of backbones: the six, the paper's spelling, sizes, and errors that help."""

import pytest

from dinov2.models import BackboneSpec, BlockGroup, build_backbone, get_spec, list_backbones, register_backbone
from dinov2.models.spec import SpecError

SIX = ("vit12", "vit24", "vim_einfft", "hydra_einfft", "hydra_hybrid", "mvhybrid")


def test_the_six_and_the_official_architectures_are_listed():
    assert list_backbones()[:6] == list(SIX)
    assert {"vit_small", "vit_base", "vit_large", "vit_giant2"} <= set(list_backbones())


@pytest.mark.parametrize(
    ("paper", "name"),
    [
        ("MVHybrid", "mvhybrid"),
        ("ViT12", "vit12"),
        ("ViT24", "vit24"),
        ("ViMEinFFT", "vim_einfft"),
        ("HydraEinFFT", "hydra_einfft"),
        ("HydraHybrid", "hydra_hybrid"),
        ("mamba_vision_S", "mvhybrid"),
    ],
)
def test_the_papers_names(paper, name):
    assert get_spec(paper) == get_spec(name)
    assert get_spec(paper).name == name


@pytest.mark.parametrize(("size", "width", "heads"), [("tiny", 192, 3), ("small", 384, 6), ("base", 768, 12)])
@pytest.mark.parametrize("name", SIX)
def test_sizes(name, size, width, heads):
    spec = get_spec(f"{name}_{size}")
    assert (spec.embed_dim, spec.num_heads, spec.name) == (width, heads, name)
    assert spec == get_spec(name, size=size) == get_spec(f"{name.upper()}_{size}")


def test_what_is_given_wins_over_the_size():
    spec = get_spec("mvhybrid_tiny", embed_dim=128, num_heads=4)
    assert (spec.embed_dim, spec.num_heads) == (128, 4)


@pytest.mark.parametrize(
    ("wrong", "near"), [("mvhybird", "mvhybrid"), ("vit_smal", "vit_small"), ("HydraEinFT", "hydra_einfft")]
)
def test_an_unknown_name_offers_the_nearest(wrong, near):
    with pytest.raises(ValueError, match=f"unknown backbone '{wrong}'; did you mean '{near}'") as error:
        build_backbone(wrong)
    assert "vit_giant2" in str(error.value)


def test_an_unknown_option_offers_the_nearest():
    with pytest.raises(ValueError, match="backbone mvhybrid: unknown option 'embed_dims'; did you mean 'embed_dim'"):
        build_backbone("mvhybrid", embed_dims=64)


@pytest.mark.parametrize("taken", ["mvhybrid", "MVHybrid", "vit-12"])
def test_a_name_is_registered_once(taken):
    before = list_backbones()
    with pytest.raises(ValueError, match="registered already"):
        register_backbone(BackboneSpec(taken, (BlockGroup("attention", "mlp", 1),), "first", "learned"))
    assert list_backbones() == before


def test_a_refused_registration_leaves_no_alias():
    spec = BackboneSpec("brand_new", (BlockGroup("attention", "mlp", 1),), "first", "learned")
    with pytest.raises(ValueError, match="'vit12' is registered already"):
        register_backbone(spec, aliases=("vit12",))
    with pytest.raises(ValueError, match="unknown backbone 'brand_new'"):
        get_spec("brand_new")


def test_all_problems_of_a_spec_in_one_error():
    with pytest.raises(SpecError) as error:
        get_spec("hydra_hybrid", embed_dim=100, num_heads=7, drop_path_rate=1.0)
    assert set(error.value.problems) == {"embed_dim", "num_heads", "drop_path_rate"}
    for text in ("embed_dim = 100", "nearest is 96", "num_heads = 7", "nearest valid number is 5"):
        assert text in str(error.value)
