"""Backbone weights on disk: `teacher.safetensors`, complete with all that is needed to use it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

import dinov2
from dinov2.models.factory import spec_from_student
from dinov2.models.isotropic import IsotropicBackbone
from dinov2.utils.config import config_from_dict, config_to_dict, read_yaml
from dinov2.utils.errors import CheckpointError
from dinov2.utils.files import replacing
from dinov2.utils.hashing import hash_weights
from dinov2.utils.schema import SSLConfig
from dinov2.utils.state_dict import shapes_of, state_differences

__all__ = ["CheckpointError", "LoadedBackbone", "load_backbone", "reinitialised", "save_backbone"]

TEACHER_FILE = "teacher.safetensors"
FORMAT = "dinov2-pathology-backbone"
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone in evaluation mode on the CPU, with the image statistics and size (px) it was trained for."""

    model: IsotropicBackbone
    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    input_size: int
    weights_hash: str
    config: dict[str, Any]


def save_backbone(path: Path, state: dict[str, torch.Tensor], config: SSLConfig, iteration: int) -> None:
    """Write a backbone's state dict with its configuration; the file appears whole or not at all."""
    metadata = {
        "format": FORMAT,
        "version": dinov2.__version__,
        "iteration": str(iteration),
        "config": json.dumps(config_to_dict(config)),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_backbone(path: str | Path) -> LoadedBackbone:
    """Load a backbone from a run or checkpoint folder, `teacher.safetensors`, or DINOv2's `teacher_checkpoint.pth`.

    The latter needs its `config.yaml` in one of the three folders above it, and is taken to expect ImageNet's
    statistics unless that file has `crops.normalize`.

    Raises:
        CheckpointError: no such file, not a checkpoint, or weights of another architecture (the keys that differ).
    """
    path = _find_file(Path(path))
    try:
        values, tensors = _read_pth(path) if path.suffix in (".pth", ".pt") else _read_safetensors(path)
        config = config_from_dict(values)
        spec = spec_from_student(config.student, config.crops.global_crops_size)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: its configuration is not usable: {error}") from error
    model = IsotropicBackbone(spec)
    _load_strictly(model, tensors, path)
    return _loaded(model, config)


def reinitialised(loaded: LoadedBackbone, seed: int = 0) -> LoadedBackbone:
    """Return the same architecture, image statistics and size with fresh random weights."""
    config = config_from_dict(loaded.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = IsotropicBackbone(loaded.model.spec)
    return _loaded(model, config)


def _loaded(model: IsotropicBackbone, config: SSLConfig) -> LoadedBackbone:
    return LoadedBackbone(
        model=model.eval(),
        name=model.spec.name,
        mean=config.crops.normalize.mean,
        std=config.crops.normalize.std,
        input_size=config.evaluation.input_size or config.crops.global_crops_size,
        weights_hash=hash_weights(model),
        config=config_to_dict(config),
    )


def _find_file(path: Path) -> Path:
    if path.is_dir():
        inside = path / TEACHER_FILE
        if not inside.is_file():
            raise CheckpointError(f"{path} holds no {TEACHER_FILE}; give a run folder, a checkpoint folder or the file")
        return inside
    if not path.is_file():
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist")
    return path


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    if metadata.get("format") != FORMAT or "config" not in metadata:
        raise CheckpointError(f"{path} carries no configuration in its metadata: it was not written by this trainer")
    return json.loads(metadata["config"]), tensors


def _read_pth(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or unsafe file
        raise CheckpointError(f"{path} cannot be loaded as plain tensors: {error}") from error
    state = content.get("teacher", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds no dictionary of weights, neither itself nor under 'teacher'")
    tensors = {}
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor) and "dino_head" not in name and "ibot_head" not in name:
            name = name.removeprefix("module.").removeprefix("backbone.")
            # DINOv2 groups blocks into chunks: blocks.CHUNK.INDEX.
            tensors[re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)] = tensor
    configs = [folder / "config.yaml" for folder in list(path.resolve().parents)[:3]]
    found = next((file for file in configs if file.is_file()), None)
    if found is None:
        raise CheckpointError(f"{path}: no config.yaml in the three folders above it, so its architecture is unknown")
    return _with_imagenet_statistics(read_yaml(found)), tensors


def _with_imagenet_statistics(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration with ImageNet's statistics unless they state others."""
    crops = values.get("crops") or {}
    return values | {"crops": {"normalize": IMAGENET} | crops} if isinstance(crops, dict) else values


def _load_strictly(model: IsotropicBackbone, tensors: dict[str, torch.Tensor], path: Path) -> None:
    name = model.spec.name
    if differences := state_differences(shapes_of(model.state_dict()), shapes_of(tensors), owner=name):
        raise CheckpointError(
            f"{path} holds weights of another architecture than {name}, which its configuration names: {differences}"
        )
    model.load_state_dict(tensors)
