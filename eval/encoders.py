"""What turns patches into embeddings: the contract, the specifications of the command line, and the colour baseline.

| specification | encoder |
|---|---|
| `checkpoint:PATH` | a pretrained backbone: run or checkpoint folder, teacher.safetensors, `.pth` of DINOv2 |
| `random:NAME` | an architecture of `dinov2.models` with fresh weights, e.g. `random:mvhybrid_tiny` |
| `random:PATH` | a checkpoint's architecture and normalisation with fresh weights |
| `timm:NAME[,pretrained=false][,checkpoint=FILE]` | a model of timm; NAME may be `hf-hub:ORG/NAME` |
| `torchscript:FILE[,size=PX,mean=R/G/B,std=R/G/B]` | a TorchScript file; ours needs no options |
| `MODULE:FUNCTION` or `factory:MODULE:FUNCTION` | what a Python function returns, see `eval.factory_encoder` |
| `color-stats` | 12 statistics of the pixels: what an encoder must beat to have learnt anything |
"""

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from eval.errors import EvalError, nearest

Pooling = Literal["cls", "mean", "cls+mean"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
KINDS = ("checkpoint", "random", "timm", "torchscript", "factory", "color-stats")


class Encoder(Protocol):
    """A frozen function of patches, with a record of all that decides its output."""

    name: str

    @property
    def settings(self) -> Mapping[str, Any]:
        """JSON-able; holds `weights_hash`, `pooling` and every other setting that changes an embedding."""
        ...

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, H, W, 3) uint8 RGB -> (B, D) float32."""
        ...


def encoder_key(encoder: Encoder) -> str:
    """sha256 of the encoder's settings: two encoders with one key give the same embeddings, whatever their names."""
    return hashlib.sha256(json.dumps(dict(encoder.settings), sort_keys=True).encode()).hexdigest()


def make_encoder(spec: str, *, pooling: Pooling = "cls+mean", device: str = "cpu", seed: int = 0) -> Encoder:
    """Build the encoder of a specification (see the module's table).

    Args:
        spec: e.g. `checkpoint:runs/a/teacher.safetensors`, `random:mvhybrid`, `timm:resnet50`, `color-stats`.
        pooling: CLS token, mean of the patch tokens, or both concatenated (the published inference output).
        device: a torch device; the embedding itself always comes back on the CPU.
        seed: draws the weights of `random:` and of `timm:...,pretrained=false`.

    Raises:
        EvalError: unknown specification or architecture, or weights that cannot be loaded.
    """
    kind, _, argument = spec.partition(":")
    if kind not in KINDS and argument.isidentifier() and _is_module(kind):
        kind, argument = "factory", spec
    if kind not in KINDS or (kind == "color-stats") == bool(argument):
        raise EvalError(
            f"encoder {spec!r}: not one of checkpoint:PATH, random:NAME, random:PATH, timm:NAME, torchscript:FILE, "
            f"MODULE:FUNCTION, color-stats. {nearest(kind, KINDS)}"
        )
    if kind == "color-stats":
        return ColorStats()
    # torch and timm take seconds to import: only those who use them wait for them.
    if kind == "timm":
        from eval.timm_encoder import timm_encoder

        return timm_encoder(spec, argument, pooling=pooling, device=device, seed=seed)
    if kind == "torchscript":
        from eval.torchscript_encoder import torchscript_encoder

        return torchscript_encoder(spec, argument, device=device)
    if kind == "factory":
        from eval.factory_encoder import factory_encoder

        return factory_encoder(spec, argument, device=device)
    from eval.backbone_encoder import checkpoint_encoder, random_encoder

    if kind == "checkpoint":
        return checkpoint_encoder(spec, argument, pooling=pooling, device=device)
    return random_encoder(spec, argument, pooling=pooling, device=device, seed=seed)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a parent that is no package, or a name that none can have
        return False


class ColorStats:
    """Mean, standard deviation, 10th and 90th percentile of R, G and B over a patch's raw pixels (0..255): D = 12."""

    name = "color-stats"

    @property
    def settings(self) -> Mapping[str, Any]:
        """No weights: the name and version of the formula stand for them."""
        return {"weights_hash": "color-stats-1", "pooling": "none"}

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, H, W, 3) uint8 -> (B, 12) float32: three means, three deviations, three 10th, three 90th percentiles."""
        pixels = images.reshape(len(images), -1, 3)  # (B, P, 3)
        low, high = np.percentile(pixels, [10, 90], axis=1)  # (B, 3) each
        return np.concatenate([pixels.mean(axis=1), pixels.std(axis=1), low, high], axis=1).astype(np.float32)
