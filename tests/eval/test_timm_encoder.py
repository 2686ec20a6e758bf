import numpy as np
import pytest
import timm
import torch

from eval.encoders import make_encoder
from eval.errors import EvalError
from eval.timm_encoder import split_tokens

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
VIT = "vit_tiny_patch16_224"


def test_cls_and_mean_of_patch_tokens():
    both = make_encoder(f"timm:{VIT},pretrained=false")
    assert both.settings["pooling"] == "cls+mean"
    out = both.embed(IMAGES)
    assert out.shape == (2, 384)
    with torch.inference_mode():
        tokens = both.model.forward_features(both.transform(torch.from_numpy(IMAGES)))
    np.testing.assert_allclose(out[:, :192], tokens[:, 0], atol=1e-6)
    np.testing.assert_allclose(out[:, 192:], tokens[:, 1:].mean(1), atol=1e-6)


def test_seed_draws_the_weights():
    first, again, other = (
        make_encoder(f"timm:{VIT},pretrained=false", seed=s).settings["weights_hash"] for s in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_model_without_cls_token_has_only_the_mean():
    encoder = make_encoder("timm:resnet10t,pretrained=false")
    assert encoder.settings["pooling"] == "mean"
    assert encoder.embed(IMAGES).shape == (2, 512)
    with pytest.raises(EvalError, match="no CLS token"):
        make_encoder("timm:resnet10t,pretrained=false", pooling="cls")


def test_registers_are_no_patches():
    model = torch.nn.Identity()
    model.num_prefix_tokens, model.cls_token = 5, torch.zeros(1)
    tokens = torch.arange(9.0).view(1, 9, 1)
    cls, patches = split_tokens(model, tokens)
    assert cls.tolist() == [[0.0]]
    assert patches.flatten().tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize("shape", [(2, 6, 3, 4), (2, 3, 4, 6)])
def test_feature_maps_of_both_layouts(shape):
    model = torch.nn.Identity()
    model.num_features = 6
    cls, patches = split_tokens(model, torch.zeros(shape))
    assert cls is None
    assert patches.shape == (2, 12, 6)


def test_local_file(tmp_path):
    torch.manual_seed(3)
    model = timm.create_model(VIT, pretrained=False)  # with its classifier, as published files are
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    encoder = make_encoder(f"timm:{VIT},checkpoint={tmp_path / 'vit.pth'}")
    torch.testing.assert_close(encoder.model.cls_token, model.cls_token)

    with pytest.raises(EvalError, match="another architecture"):
        make_encoder(f"timm:vit_tiny_r_s16_p8_224,checkpoint={tmp_path / 'vit.pth'}")
    with pytest.raises(EvalError, match="does not exist"):
        make_encoder(f"timm:{VIT},checkpoint={tmp_path / 'absent.pth'}")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(EvalError, match="not a readable checkpoint"):
        make_encoder(f"timm:{VIT},checkpoint={tmp_path / 'text.pth'}")


def test_without_network_the_error_says_what_to_give(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(EvalError, match=rf"timm:{VIT},checkpoint=FILE"):
        make_encoder(f"timm:{VIT}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:vit_smal_patch16_224", "Nearest: .*vit_small_patch16_224"),
        (f"timm:{VIT},pretrain=false", "unknown option 'pretrain'. Nearest: pretrained"),
        (f"timm:{VIT},pretrained=no", "must be true or false"),
    ],
)
def test_bad_specifications(spec, message):
    with pytest.raises(EvalError, match=message):
        make_encoder(spec)


@pytest.mark.parametrize("more", ["", ",pretrained=false"])
def test_a_model_of_the_hub_without_network(monkeypatch, tmp_path, more):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EvalError, match=r"could not be fetched.*timm:ARCHITECTURE,checkpoint=FILE"):
        make_encoder(f"timm:hf-hub:nobody/nothing{more}")


def test_a_model_of_the_hub(monkeypatch):
    original = timm.create_model
    asked = []

    def fetched(name, pretrained, **options):
        asked.append((name, pretrained))
        return original(VIT, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", fetched)
    encoder = make_encoder("timm:hf-hub:org/model")
    assert asked == [("hf-hub:org/model", True)]
    assert encoder.settings["architecture"] == "hf-hub:org/model"
