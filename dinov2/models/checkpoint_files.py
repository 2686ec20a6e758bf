"""Reading a backbone's weights from disk, whoever wrote them: tensors by our names, and values of a configuration.

| file | names | configuration |
|---|---|---|
| this package's safetensors | ours | in its metadata |
| DINOv2's `teacher_checkpoint.pth` | DINOv2's or the published MVHybrid's | `config.yaml`, up to three folders above |
| the same without `config.yaml`, a bare state dict | the published MVHybrid's | from shapes and names |
| Facebook Research's `dinov2_*_pretrain.pth` | DINOv2's | from shapes and names |
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dinov2.models.official import IMAGENET, is_official, official_values
from dinov2.models.published import is_published, published_student, rename_published
from dinov2.models.state_files import TEACHER_FILE, find_file, read_pth, read_safetensors
from dinov2.utils.config import read_yaml
from dinov2.utils.errors import CheckpointError, ConfigError

FORMAT = "dinov2-pathology-backbone"
TRAINED, IMPORTED = "trained", "imported"

__all__ = ["FORMAT", "IMPORTED", "TEACHER_FILE", "TRAINED", "Checkpoint", "read_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: tensors by our names, nested values of a configuration, and where both come from.

    `origin` is `trained` when this package's trainer wrote the weights, so that the configuration is that of their
    training, else `imported`; `iteration` is the number of optimiser steps, where it is known.
    """

    path: Path
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    origin: str
    iteration: int | None = None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a run or checkpoint folder, or a file of the module's table.

    Raises:
        CheckpointError: no such file, not a checkpoint, or an architecture that cannot be told.
    """
    path = find_file(path)
    if path.suffix == ".safetensors":
        metadata, tensors = read_safetensors(path)
        if metadata.get("format") == FORMAT and "config" in metadata:
            return _own(path, metadata, tensors)
        values = _inferred(path, tensors, "carries no configuration in its metadata")
    else:
        tensors, bare = read_pth(path)
        values = _configured(path, tensors, bare)
    if is_published(tensors):
        try:
            tensors = rename_published(tensors)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    return Checkpoint(path, tensors, values, IMPORTED)


def _own(path: Path, metadata: Mapping[str, str], tensors: dict[str, Tensor]) -> Checkpoint:
    iteration = metadata.get("iteration", "")
    return Checkpoint(
        path,
        tensors,
        json.loads(metadata["config"]),
        metadata.get("origin", TRAINED),
        int(iteration) if iteration.isdigit() else None,
    )


def _configured(path: Path, tensors: Mapping[str, Tensor], bare: bool) -> dict[str, Any]:
    """Return the values of the nearest `config.yaml`, or what the tensors themselves tell.

    A bare state dict was not written by a training run, so that only a file beside it can be its configuration.
    """
    folders = list(path.resolve().parents)[:3]
    found = next((folder / "config.yaml" for folder in folders if (folder / "config.yaml").is_file()), None)
    recognised = is_official(tensors) or is_published(tensors)
    if found is None or (bare and recognised and found.parent != folders[0]):
        return _inferred(path, tensors, "has no config.yaml in the three folders above it")
    try:
        values = read_yaml(found)
    except ConfigError as error:
        raise CheckpointError(f"{path}: its configuration is not usable: {error}") from error
    if is_published(tensors):
        return _inferred(path, tensors, "", values.get("crops"))
    student, crops = values.get("student"), values.get("crops") or {}
    # The published MVHybrid code, which has this key, normalises by the statistics that are our defaults.
    if not isinstance(crops, dict) or (isinstance(student, dict) and "num_cls_tokens" in student):
        return values
    return values | {"crops": {"normalize": IMAGENET} | crops}


def _inferred(path: Path, tensors: Mapping[str, Tensor], missing: str, crops: Any = None) -> dict[str, Any]:
    """Return what names and shapes tell, with the crops of the training where they are known."""
    try:
        if is_published(tensors):
            # The configurations of the published code have keys for backbones of its own, and none for its sizes.
            return {"student": published_student(tensors), "crops": crops}
        if is_official(tensors):
            return official_values(tensors)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    raise CheckpointError(
        f"{path} {missing}, and its names are neither those of DINOv2's models nor of the published MVHybrid, so its "
        "architecture is unknown"
    )
