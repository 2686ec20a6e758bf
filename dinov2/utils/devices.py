"""Which kind of device a run computes on."""

import torch

from dinov2.utils.errors import ConfigError


def device_type(name: str) -> str:
    """Return `cuda` or `cpu` for `train.device`.

    Raises:
        ConfigError: `cuda` where there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device = cuda: this machine has no usable CUDA device; use auto or cpu")
    return name
