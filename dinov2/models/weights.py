"""Backbone weights on disk: `teacher.safetensors`, complete with all that is needed to use it, and others' files."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import dinov2
from dinov2.models.checkpoint_files import FORMAT, TEACHER_FILE, TRAINED, read_checkpoint
from dinov2.models.factory import spec_from_student
from dinov2.models.isotropic import IsotropicBackbone
from dinov2.models.scan_bounds import bounds_warning
from dinov2.utils.config import config_from_dict, config_to_dict
from dinov2.utils.errors import CheckpointError
from dinov2.utils.files import replacing
from dinov2.utils.hashing import hash_weights
from dinov2.utils.schema import SSLConfig
from dinov2.utils.state_dict import shapes_of, state_differences

__all__ = ["TEACHER_FILE", "CheckpointError", "LoadedBackbone", "load_backbone", "reinitialised", "save_backbone"]

logger = logging.getLogger("dinov2")


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone in evaluation mode on the CPU, with the image statistics and size (px) it was trained for.

    `origin` is `trained` when `config` is that of the training of these weights, else `imported`; `iteration` is the
    number of optimiser steps, where it is known.
    """

    model: IsotropicBackbone
    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    input_size: int
    weights_hash: str
    config: dict[str, Any]
    origin: str = TRAINED
    iteration: int | None = None


def save_backbone(
    path: Path, state: dict[str, torch.Tensor], config: SSLConfig, iteration: int | None, origin: str = TRAINED
) -> None:
    """Write a backbone's state dict with its configuration; the file appears whole or not at all."""
    metadata = {
        "format": FORMAT,
        "version": dinov2.__version__,
        "iteration": "" if iteration is None else str(iteration),
        "origin": origin,
        "config": json.dumps(config_to_dict(config)),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_backbone(path: str | Path) -> LoadedBackbone:
    """Load a backbone from a run or checkpoint folder or a file.

    Files are this package's safetensors, DINOv2's and the published MVHybrid's `teacher_checkpoint.pth` with the
    `config.yaml` of their run in one of the three folders above, and without one Facebook Research's
    `dinov2_*_pretrain.pth` and the published MVHybrid. DINOv2's are taken to expect ImageNet's statistics unless that
    configuration has `crops.normalize`. Weights that other programs trained and whose scans this package bounds are
    warned of in the log.

    Raises:
        CheckpointError: no such file, not a checkpoint, or weights of another architecture (the keys that differ).
    """
    checkpoint = read_checkpoint(Path(path))
    try:
        config = config_from_dict(checkpoint.values)
        spec = spec_from_student(config.student, config.crops.global_crops_size)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: its configuration is not usable: {error}") from error
    model = IsotropicBackbone(spec)
    _load_strictly(model, checkpoint.tensors, checkpoint.path)
    if checkpoint.origin != TRAINED and (warning := bounds_warning(model)):  # ours were trained within the bounds
        logger.warning("%s: %s", checkpoint.path, warning)
    return _loaded(model, config, checkpoint.origin, checkpoint.iteration)


def reinitialised(loaded: LoadedBackbone, seed: int = 0) -> LoadedBackbone:
    """Return the same architecture, image statistics and size with fresh random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = IsotropicBackbone(loaded.model.spec).eval()
    return replace(loaded, model=model, weights_hash=hash_weights(model), iteration=0)


def _loaded(model: IsotropicBackbone, config: SSLConfig, origin: str, iteration: int | None) -> LoadedBackbone:
    return LoadedBackbone(
        model=model.eval(),
        name=model.spec.name,
        mean=config.crops.normalize.mean,
        std=config.crops.normalize.std,
        input_size=config.evaluation.input_size or config.crops.global_crops_size,
        weights_hash=hash_weights(model),
        config=config_to_dict(config),
        origin=origin,
        iteration=iteration,
    )


def _load_strictly(model: IsotropicBackbone, tensors: dict[str, torch.Tensor], path: Path) -> None:
    name = model.spec.name
    if differences := state_differences(shapes_of(model.state_dict()), shapes_of(tensors), owner=name):
        raise CheckpointError(
            f"{path} holds weights of another architecture than {name}, which its configuration names: {differences}"
        )
    model.load_state_dict(tensors)
