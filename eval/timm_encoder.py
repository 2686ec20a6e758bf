"""Encoders from timm: transformers by their tokens, convolutional networks by the mean of their last feature map.

`hf-hub:ORG/NAME` is a model in a repository of the Hugging Face hub. A model without a CLS token has only the mean,
whatever `--pooling cls+mean` asks; the result records which was used. Patches are resized to the model's input size
whole: timm's centre crop would cut tissue that belongs to the spot.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from dinov2.utils.hashing import hash_weights
from eval.encoders import Pooling
from eval.errors import EvalError, first_few, nearest
from eval.torch_encoder import TorchEncoder, Transform, pool

OPTIONS = ("pretrained", "checkpoint")


def timm_encoder(name: str, argument: str, *, pooling: Pooling, device: str, seed: int) -> TorchEncoder:
    """Build `NAME[,pretrained=true|false][,checkpoint=FILE]`; weights are downloaded unless an option says otherwise.

    Raises:
        EvalError: unknown model or option, no network, or a file that does not fit the model.
    """
    import timm
    from timm.data.config import resolve_model_data_config

    model_name, *pairs = argument.split(",")
    options = _options(name, pairs)
    if not _on_hub(model_name) and not timm.is_model(model_name):
        raise EvalError(
            f"encoder {name!r}: timm {timm.__version__} has no {model_name!r}. "
            f"{nearest(model_name, timm.list_models())}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _create(name, model_name, options)
    has_cls = _has_cls(model)
    if pooling == "cls" and not has_cls:
        raise EvalError(f"encoder {name!r}: {model_name} has no CLS token. Use --pooling mean or cls+mean.")
    used: Pooling = pooling if has_cls else "mean"
    config = resolve_model_data_config(model)
    transform = Transform(
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        input_size=int(config["input_size"][-1]),
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
    )

    def tokens(network: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        # timm's models have forward_features, but nn.Module, their declared type, does not.
        cls, patches = split_tokens(network, network.forward_features(batch))  # type: ignore[operator]
        return pool(cls, patches, used)

    extra: dict[str, Any] = {"architecture": model_name, "timm": timm.__version__}
    return TorchEncoder(name, model, transform, tokens, hash_weights(model), used, device, extra)


def split_tokens(model: nn.Module, features: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Return the CLS token (B, D), None without one, and the patch tokens (B, N, D) of `forward_features`.

    Args:
        model: says by `num_prefix_tokens` how many tokens come before the patches, and by `num_features` what D is.
        features: (B, P + N, D) tokens, or a feature map (B, D, H, W) or (B, H, W, D).
    """
    if features.ndim == 4:
        channels_first = features.shape[1] == model.num_features
        return None, features.flatten(2).transpose(1, 2) if channels_first else features.flatten(1, 2)
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    return features[:, 0] if _has_cls(model) else None, features[:, prefix:]


def _has_cls(model: nn.Module) -> bool:
    return getattr(model, "cls_token", None) is not None and int(getattr(model, "num_prefix_tokens", 0)) > 0


def _options(name: str, pairs: list[str]) -> dict[str, str]:
    options = dict(pair.partition("=")[::2] for pair in pairs)
    for key, value in options.items():
        if key not in OPTIONS:
            raise EvalError(f"encoder {name!r}: unknown option {key!r}. {nearest(key, OPTIONS)}")
        if key == "pretrained" and value not in ("true", "false"):
            raise EvalError(f"encoder {name!r}: pretrained={value}; it must be true or false.")
    return options


def _create(name: str, model_name: str, options: dict[str, str]) -> nn.Module:
    import timm

    pretrained = "checkpoint" not in options and options.get("pretrained") != "false"
    try:
        model = timm.create_model(model_name, pretrained=pretrained, num_classes=0)
    except Exception as error:  # the hub, its transport and timm raise unrelated types when a download fails
        if not pretrained and not _on_hub(model_name):
            raise
        # A model of the hub has its architecture there too: only timm's own name needs no network.
        local = "ARCHITECTURE" if _on_hub(model_name) else model_name
        what = "pretrained weights" if pretrained else "its architecture"
        raise EvalError(
            f"encoder {name!r}: {what} could not be fetched ({type(error).__name__}: {str(error)[:200]}). Check the "
            "name, and for gated models the token (HF_TOKEN). Without network, give a local file: "
            f"timm:{local},checkpoint=FILE (.safetensors or .pth); for random weights: timm:{local},pretrained=false."
        ) from error
    if "checkpoint" in options:
        _load_file(name, model, Path(options["checkpoint"]))
    return model


def _on_hub(model_name: str) -> bool:
    return model_name.startswith(("hf-hub:", "hf_hub:"))


def _load_file(name: str, model: nn.Module, path: Path) -> None:
    from timm.models import load_state_dict

    if not path.is_file():
        raise EvalError(f"encoder {name!r}: checkpoint {path} does not exist. Give a .safetensors or .pth file.")
    try:
        weights = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # torch, pickle, zip and safetensors each have types of their own
        raise EvalError(f"encoder {name!r}: {path} is not a readable checkpoint ({error}).") from error
    config: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    classifier = config.get("classifier") or ()
    heads = tuple(f"{c}." for c in ((classifier,) if isinstance(classifier, str) else classifier))
    weights = {key: value for key, value in weights.items() if not key.startswith(heads)}
    own = model.state_dict()
    wrong = [k for k in weights if k in own and own[k].shape != weights[k].shape]
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or unknown or wrong:
        raise EvalError(
            f"encoder {name!r}: {path} belongs to another architecture: {len(missing)} keys missing "
            f"({first_few(missing, 3)}), {len(unknown)} unknown ({first_few(unknown, 3)}), {len(wrong)} of another "
            f"shape ({first_few(wrong, 3)}). Name the architecture that the file was saved from."
        )
    model.load_state_dict(weights)
