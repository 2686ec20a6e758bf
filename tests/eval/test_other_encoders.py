"""TorchScript files and Python functions as encoders."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from eval.encoders import ColorStats, encoder_key, make_encoder
from eval.errors import EvalError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


class Flat(nn.Module):
    """The mean colour of normalised images, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x.mean(dim=(2, 3))


def save(path, **config):
    extra = {"config.json": json.dumps(config)} if config else {}
    torch.jit.save(torch.jit.trace(Flat(), torch.zeros(1, 3, 16, 16)), str(path), _extra_files=extra)
    return path


def expected(mean, std):
    return 2 * ((IMAGES / 255).mean(axis=(1, 2)) - mean) / std


def test_a_torchscript_file_with_its_normalisation(tmp_path) -> None:
    mean, std = [0.5, 0.6, 0.7], [0.1, 0.2, 0.3]
    path = save(tmp_path / "a.pt", mean=mean, std=std, image_size=16, pooling="mean")
    encoder = make_encoder(f"torchscript:{path}", pooling="cls+mean")
    np.testing.assert_allclose(encoder.embed(IMAGES), expected(mean, std), atol=1e-5)
    assert (encoder.settings["pooling"], encoder.settings["input_size"]) == ("mean", 16)


def test_a_torchscript_file_whose_normalisation_is_given(tmp_path) -> None:
    path = save(tmp_path / "a.pt")
    encoder = make_encoder(f"torchscript:{path},size=16,mean=0.5/0.5/0.5,std=0.2/0.2/0.2")
    np.testing.assert_allclose(encoder.embed(IMAGES), expected(0.5, 0.2), atol=1e-5)
    other = make_encoder(f"torchscript:{path},size=16,mean=0.5/0.5/0.5,std=0.2/0.2/0.3")
    assert encoder_key(encoder) != encoder_key(other)
    asked = make_encoder(f"torchscript:{path},size=16,mean=0.5/0.5/0.5,std=0.2/0.2/0.2", pooling="cls")
    assert encoder_key(asked) == encoder_key(encoder)
    assert asked.settings["pooling"] == "unknown"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nowhere.pt", "does not exist"),
        ("text.pt", "is not a TorchScript file"),
        ("a.pt", "does not say its size, mean, std"),
        ("a.pt,size=16,mean=0.5/0.5/0.5", "does not say its std"),
        ("a.pt,size=big", "size=big cannot be read"),
        ("a.pt,mean=0.5", "give three numbers"),
        ("a.pt,sise=3", "Nearest: size"),
    ],
)
def test_unusable_torchscript(tmp_path, monkeypatch, argument, message) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.pt")
    (tmp_path / "text.pt").write_text("no zip")
    with pytest.raises(EvalError, match=message):
        make_encoder(f"torchscript:{argument}")


def test_torchscript_must_give_one_embedding_an_image(tmp_path) -> None:
    torch.jit.save(torch.jit.trace(nn.Identity(), torch.zeros(1, 3, 16, 16)), str(tmp_path / "map.pt"))
    encoder = make_encoder(f"torchscript:{tmp_path / 'map.pt'},size=16,mean=0/0/0,std=1/1/1")
    with pytest.raises(EvalError, match=r"shape \(3, 3, 16, 16\)"):
        encoder.embed(IMAGES)


class Negative(Flat):
    """The same weights, another graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -self.scale * x.mean(dim=(2, 3))


def test_scripts_of_equal_weights_have_keys_of_their_own(tmp_path) -> None:
    keys = set()
    for name, model in (("a", Flat()), ("b", Negative())):
        torch.jit.save(torch.jit.trace(model, torch.zeros(1, 3, 16, 16)), str(tmp_path / f"{name}.pt"))
        keys.add(encoder_key(make_encoder(f"torchscript:{tmp_path / name}.pt,size=16,mean=0/0/0,std=1/1/1")))
    assert len(keys) == 2


def pair():
    return Flat(), lambda image: torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def finished():
    return ColorStats()


def wrong():
    return Flat()


class Mine(ColorStats):
    def __init__(self, **settings) -> None:
        self.own = settings

    @property
    def settings(self):
        return self.own

    def embed(self, images):
        raise KeyError("no such layer")


def negative():
    return Mine(weights_hash="w", pooling="cls", hook=repr(pair))


def nameless():
    mine = Mine(weights_hash="w", pooling="cls")
    mine.name = ""
    return mine


def hashless():
    return Mine(pooling="cls")


def no_json():
    return Mine(weights_hash="w", pooling="cls", model=Flat())


def failing():
    raise RuntimeError("weights are missing")


def test_functions_that_return_encoders(monkeypatch, request) -> None:
    monkeypatch.syspath_prepend(str(request.path.parent))
    encoder = make_encoder("factory:test_other_encoders:pair")
    np.testing.assert_allclose(encoder.embed(IMAGES), expected(0, 1), atol=1e-5)
    assert {"weights_hash", "pooling"} <= set(encoder.settings)
    assert "0x" not in json.dumps(dict(encoder.settings))
    assert encoder_key(encoder) == encoder_key(make_encoder("test_other_encoders:pair"))  # the short spelling
    finished = make_encoder("test_other_encoders:finished")
    np.testing.assert_array_equal(finished.embed(IMAGES), ColorStats().embed(IMAGES))
    assert encoder_key(finished) != encoder_key(ColorStats())  # the key knows the function and its module's code
    with pytest.raises(EvalError, match="embed raised KeyError"):
        make_encoder("test_other_encoders:negative").embed(IMAGES)
    for argument, message in (
        ("test_other_encoders:wrong", "returned Flat; it must return a pair"),
        ("test_other_encoders:missing", "has no attribute 'missing'"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("no_such_module", "write package.module:function"),
        ("test_other_encoders:nameless", "its `name` is ''"),
        ("test_other_encoders:hashless", r"settings\['weights_hash'\] is None"),
        ("test_other_encoders:no_json", "settings are not JSON"),
        ("test_other_encoders:failing", r"failing\(\) raised RuntimeError: weights are missing"),
    ):
        with pytest.raises(EvalError, match=message):
            make_encoder(f"factory:{argument}")
