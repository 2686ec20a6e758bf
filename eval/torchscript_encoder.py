"""TorchScript files as encoders: ours, which carry their normalisation, and others, whose normalisation is given.

Such a file maps normalised images (B, 3, S, S) to embeddings (B, D); its pooling was fixed when it was made.
"""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dinov2.utils.hashing import hash_weights
from eval.errors import EvalError, nearest
from eval.torch_encoder import TorchEncoder, Transform

OPTIONS = ("size", "mean", "std")
UNKNOWN_POOLING = "unknown"  # of files of other programs
_CONFIG = "config.json"  # the extra file of `python -m dinov2.models.export --format torchscript`


def torchscript_encoder(name: str, argument: str, *, device: str) -> TorchEncoder:
    """Load `FILE[,size=PX,mean=R/G/B,std=R/G/B]`; the options are needed where the file does not carry them.

    Pooling is the file's own; the settings record it, or that it is not known.

    Raises:
        EvalError: no readable TorchScript file, an unknown option, or no normalisation.
    """
    file, *pairs = argument.split(",")
    options = _options(name, pairs)
    path, extra = Path(file), {_CONFIG: ""}
    if not path.is_file():
        raise EvalError(f"encoder {name!r}: {path} does not exist. Give a file that torch.jit.save has written.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, but what many encoders come as
            model = torch.jit.load(str(path), map_location=device, _extra_files=extra)
    except Exception as error:  # zip, pickle and the interpreter raise types of their own
        raise EvalError(f"encoder {name!r}: {path} is not a TorchScript file ({str(error)[:200]}).") from error
    config: dict[str, Any] = json.loads(extra[_CONFIG]) if extra[_CONFIG] else {}
    config = {"size": config.get("image_size"), **{k: config.get(k) for k in ("mean", "std", "pooling")}} | options
    missing = [option for option in OPTIONS if not config[option]]
    if missing:
        raise EvalError(
            f"encoder {name!r}: {path} does not say its {', '.join(missing)}. "
            f"Give those of its training: torchscript:{file},size=224,mean=0.485/0.456/0.406,std=0.229/0.224/0.225"
        )
    transform = Transform(tuple(config["mean"]), tuple(config["std"]), int(config["size"]))
    used = config["pooling"] or UNKNOWN_POOLING
    with path.open("rb") as stream:  # the file also holds the graph: equal weights need not give equal embeddings
        script = hashlib.file_digest(stream, "sha256").hexdigest()
    extra_settings = {"kind": "torchscript", "file_hash": script}
    return TorchEncoder(name, model, transform, _embedding, hash_weights(model), used, device, extra_settings)


def _embedding(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    out = model(batch)
    if not isinstance(out, torch.Tensor) or out.ndim != 2:
        what = f"shape {tuple(out.shape)}" if isinstance(out, torch.Tensor) else type(out).__name__
        raise EvalError(f"the TorchScript encoder returns {what}; it must return one embedding an image, (B, D).")
    return out


def _options(name: str, pairs: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for key, _, value in (pair.partition("=") for pair in pairs):
        if key not in OPTIONS:
            raise EvalError(f"encoder {name!r}: unknown option {key!r}. {nearest(key, OPTIONS)}")
        try:
            options[key] = int(value) if key == "size" else tuple(float(part) for part in value.split("/"))
        except ValueError as error:
            raise EvalError(f"encoder {name!r}: {key}={value} cannot be read ({error}).") from error
        if key != "size" and len(options[key]) != 3:
            raise EvalError(f"encoder {name!r}: {key}={value}; give three numbers, R/G/B.")
    return options
