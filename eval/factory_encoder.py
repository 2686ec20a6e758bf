"""Encoders from a Python function of the user's: `package.module:function`, or `factory:package.module:function`.

The function takes no argument and returns an `eval.encoders.Encoder`, or a pair (model, transform) as many published
encoders come: a module that maps (B, 3, S, S) to (B, D), and a function from a PIL image to a tensor (3, S, S).
"""

import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from dinov2.utils.errors import UserError
from dinov2.utils.hashing import hash_weights
from eval.encoders import Encoder
from eval.errors import EvalError

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # in what Python prints for functions; another one in every process


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
        """Weights, and layers and transform as they print themselves."""
        layers = hashlib.sha256(ADDRESS.sub("", repr(self.model)).encode()).hexdigest()
        return {
            "weights_hash": self.weights_hash,
            "pooling": "none",
            "layers_hash": layers,
            "transform": repr(self.transform),
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


@dataclass
class FactoryEncoder:
    """What a user's function made, with settings that also name the function and its code; implements `Encoder`."""

    inner: Encoder
    name: str
    settings: Mapping[str, Any]

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, H, W, 3) uint8 RGB -> (B, D) float32.

        Raises:
            EvalError: the user's code fails, or returns something else than one embedding an image.
        """
        try:
            found = np.asarray(self.inner.embed(images), dtype=np.float32)
        except UserError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise EvalError(f"encoder {self.name!r}: embed raised {_said(error)}. Correct that code.") from error
        if found.ndim != 2 or len(found) != len(images):
            raise EvalError(
                f"encoder {self.name!r}: embed returned shape {found.shape} for {len(images)} images; it must return "
                "one embedding an image, (B, D)."
            )
        return found


def factory_encoder(name: str, argument: str, *, device: str) -> Encoder:
    """Call `module:function` and return the encoder it makes.

    Raises:
        EvalError: no such module or function, it fails or returns something else, or its settings do not identify it.
    """
    module_name, colon, function_name = argument.partition(":")
    if not (module_name and colon and function_name):
        raise EvalError(f"encoder {name!r}: write package.module:function.")
    try:
        module = importlib.import_module(module_name)
        function = getattr(module, function_name)
    except (ImportError, AttributeError) as error:
        raise EvalError(
            f"encoder {name!r}: {error}. The module must be importable from here: check PYTHONPATH and its name."
        ) from error
    except Exception as error:  # the user's code may raise anything
        raise EvalError(f"encoder {name!r}: importing {module_name} raised {_said(error)}. Correct it.") from error
    try:
        made = function()
    except UserError:
        raise
    except Exception as error:
        raise EvalError(
            f"encoder {name!r}: {function_name}() raised {_said(error)}. It is called without arguments."
        ) from error
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module) and callable(made[1]):
        made = ModelWithTransform(name, made[0], made[1], device)
    if not callable(getattr(made, "embed", None)) or not isinstance(getattr(made, "settings", None), Mapping):
        raise EvalError(
            f"encoder {name!r}: {function_name} returned {type(made).__name__}; it must return a pair (model, "
            "transform), or an object with `name`, `settings` (a mapping) and `embed(images)`."
        )
    own = getattr(made, "name", None)
    if not isinstance(own, str) or not own:
        raise EvalError(f"encoder {name!r}: its `name` is {own!r}; it must be a text, by which results list it.")
    code = {"factory": f"{module_name}:{function_name}", "source_hash": _source_hash(module)}
    return FactoryEncoder(made, own, {**_checked(name, made.settings), **code})


def _checked(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they come back from JSON, memory addresses removed, so that equal encoders have one key."""
    for key in ("weights_hash", "pooling"):
        if not isinstance(settings.get(key), str) or not settings[key]:
            raise EvalError(
                f"encoder {name!r}: settings[{key!r}] is {settings.get(key)!r}; it must be a text that is not empty. "
                "Cached embeddings are found by the settings: give a hash of the weights, and cls, mean or none."
            )
    try:
        text = json.dumps(dict(settings), sort_keys=True)
    except (TypeError, ValueError) as error:
        raise EvalError(
            f"encoder {name!r}: its settings are not JSON ({error}). Use texts, numbers, lists and mappings."
        ) from error
    found: dict[str, Any] = json.loads(ADDRESS.sub("", text))
    return found


def _source_hash(module: ModuleType) -> str:
    """sha256 of the module's code, "" where Python has no source of it."""
    try:
        return hashlib.sha256(inspect.getsource(module).encode()).hexdigest()
    except (OSError, TypeError):
        return ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
