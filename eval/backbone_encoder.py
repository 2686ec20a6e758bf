"""Encoders from this project's own backbones: trained checkpoints and random initialisations.

Mean, standard deviation and input size come from the checkpoint; for an architecture without one, from the paper.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dinov2.utils.hashing import hash_weights
from dinov2.utils.schema import NormalizeSection
from eval.encoders import Pooling
from eval.errors import EvalError
from eval.torch_encoder import TorchEncoder, Transform, pool

if TYPE_CHECKING:
    from dinov2.models.weights import LoadedBackbone

# The MVHybrid paper's normalisation of H&E tiles, and the patch size of the benchmark.
PAPER_TRANSFORM = Transform(NormalizeSection().mean, NormalizeSection().std, input_size=224)


def checkpoint_encoder(name: str, path: str, *, pooling: Pooling, device: str) -> TorchEncoder:
    """Load a pretrained backbone with its own transform.

    Raises:
        CheckpointError: `path` holds no checkpoint that can be loaded.
    """
    from dinov2.models.weights import load_backbone

    return _from_loaded(name, load_backbone(path), pooling, device)


def random_encoder(name: str, argument: str, *, pooling: Pooling, device: str, seed: int) -> TorchEncoder:
    """Freshly initialise an architecture given by name, or a checkpoint's architecture given by its path.

    Raises:
        EvalError: `argument` is neither a known name nor an existing path.
        CheckpointError: it is a path without a checkpoint that can be loaded.
    """
    if Path(argument).exists():
        from dinov2.models.weights import load_backbone, reinitialised

        return _from_loaded(name, reinitialised(load_backbone(argument), seed), pooling, device)
    if "/" in argument or Path(argument).suffix:
        raise EvalError(f"encoder {name!r}: no such file or folder. Give a checkpoint's path or an architecture.")
    from dinov2 import __version__
    from dinov2.models import build_backbone

    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_backbone(argument)
    except ValueError as error:
        raise EvalError(f"encoder {name!r}: {error}") from error
    extra = {"architecture": argument, "dinov2": __version__}
    return TorchEncoder(name, model, PAPER_TRANSFORM, _tokens(pooling), hash_weights(model), pooling, device, extra)


def _from_loaded(name: str, loaded: "LoadedBackbone", pooling: Pooling, device: str) -> TorchEncoder:
    from dinov2 import __version__

    # Equal weights in another architecture (CLS position, mixers without parameters) give other embeddings.
    config = hashlib.sha256(json.dumps(loaded.config, sort_keys=True, default=str).encode()).hexdigest()
    extra: dict[str, Any] = {"architecture": loaded.name, "config_hash": config, "dinov2": __version__}
    transform = Transform(loaded.mean, loaded.std, loaded.input_size)
    return TorchEncoder(name, loaded.model, transform, _tokens(pooling), loaded.weights_hash, pooling, device, extra)


def _tokens(pooling: Pooling) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    def tokens(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        out = model(batch, is_training=True)
        return pool(out["x_norm_clstoken"], out["x_norm_patchtokens"], pooling)

    return tokens
