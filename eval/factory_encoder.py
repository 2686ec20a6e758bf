"""Encoders from a Python function of the user's: `factory:package.module:function`.

The function takes no argument and returns an `eval.encoders.Encoder`, or a pair (model, transform) as many published
encoders come: a module that maps (B, 3, S, S) to (B, D), and a function from a PIL image to a tensor (3, S, S).
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from dinov2.utils.hashing import hash_weights
from eval.encoders import Encoder
from eval.errors import EvalError


@dataclass
class ModelWithTransform:
    """A module and the transform of its images; implements `Encoder`."""

    name: str
    model: nn.Module
    transform: Callable[[Image.Image], torch.Tensor]
    device: str

    def __post_init__(self) -> None:
        self.weights_hash = hash_weights(self.model)
        self.model = self.model.eval().to(self.device)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Weights, and the transform as it prints itself."""
        return {
            "weights_hash": self.weights_hash,
            "pooling": "none",
            "transform": repr(self.transform),
            "kind": self.name,
        }

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, H, W, 3) uint8 RGB -> (B, D) float32.

        Raises:
            EvalError: the model returns something else than one embedding an image.
        """
        with torch.inference_mode():
            batch = torch.stack([self.transform(Image.fromarray(image)) for image in images])  # (B, 3, S, S)
            out = self.model(batch.to(self.device))
        if not isinstance(out, torch.Tensor) or out.ndim != 2:
            what = f"shape {tuple(out.shape)}" if isinstance(out, torch.Tensor) else type(out).__name__
            raise EvalError(f"encoder {self.name!r} returns {what}; it must return one embedding an image, (B, D).")
        return np.asarray(out.float().cpu().numpy())


def factory_encoder(name: str, argument: str, *, device: str) -> Encoder:
    """Call `module:function` and return the encoder it makes.

    Raises:
        EvalError: no such module or function, or it returns something else.
    """
    module_name, colon, function_name = argument.partition(":")
    if not (module_name and colon and function_name):
        raise EvalError(f"encoder {name!r}: write factory:package.module:function.")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise EvalError(
            f"encoder {name!r}: {error}. The module must be importable from here: check PYTHONPATH and its name."
        ) from error
    made = function()
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module) and callable(made[1]):
        return ModelWithTransform(name, made[0], made[1], device)
    if callable(getattr(made, "embed", None)) and isinstance(getattr(made, "settings", None), Mapping):
        return made
    raise EvalError(
        f"encoder {name!r}: {function_name} returned {type(made).__name__}; it must return a pair (model, transform), "
        "or an object with `name`, `settings` (a mapping) and `embed(images)`."
    )
