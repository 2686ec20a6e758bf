"""Reading training checkpoints: into a state on any number of processes, or the whole weights of one part."""

from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict_loader import load

from dinov2.distributed.env import all_reduce_max
from dinov2.distributed.tensor_reader import TensorReader
from dinov2.distributed.training_state import OPTIONAL, TrainingState
from dinov2.utils.errors import CheckpointError
from dinov2.utils.state_dict import shapes_of, state_differences


def read_state(path: Path, state: TrainingState) -> dict[str, Any]:
    """Read a checkpoint folder into the tensors of `state`, and return them as `TrainingState.load` takes them.

    Raises:
        CheckpointError: it is of another architecture.
        Exception: of many kinds, when it is damaged.
    """
    tensors = state.tensors(0)
    stored = _read_names(path)
    _require_same_parameters(tensors["model"], stored, path)
    there = {part: _present(tensors[part], f"{part}.", stored) for part in OPTIONAL}
    # In place: moments that are not there stay those of a fresh optimiser.
    load(tensors | there, storage_reader=TensorReader(path))
    return tensors | {part: there[part] for part in ("rng", "scaler")}


def read_whole(path: Path, model: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Read the weights of a part of the model, each whole where it is sharded, on one process alone.

    Args:
        path: the checkpoint folder.
        model: the tensors that were saved, or their sharded parts; they lend their shapes and dtypes.
        prefix: what the names of that part begin with; the result's names lack it.
    """
    whole = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in model.items() if name.startswith(prefix)
    }
    load({"model": whole}, storage_reader=TensorReader(path), no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in whole.items()}


def _read_names(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, by name; if a process cannot read it, none of them goes on to load it."""
    stored: dict[str, Any] = {}
    problem: Exception | None = None
    try:
        stored = TensorReader(path).read_metadata().state_dict_metadata
    except Exception as error:
        problem = error
    if all_reduce_max(torch.tensor(int(problem is not None))):
        raise problem or OSError(f"another process cannot read {path}; its log says why")
    return stored


def _present(tensors: dict[str, Any], prefix: str, stored: Container[str]) -> dict[str, Any]:
    """Return those of a tree's tensors that are stored, under their dotted names."""
    found = {}
    for name, value in tensors.items():
        if isinstance(value, dict):
            found[name] = _present(value, f"{prefix}{name}.", stored)
        elif f"{prefix}{name}" in stored:
            found[name] = value
    return found


def _require_same_parameters(model: dict[str, torch.Tensor], stored: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError naming the parameters in which a checkpoint and the model differ."""
    there = {name.removeprefix("model."): tuple(e.size) for name, e in stored.items() if name.startswith("model.")}
    if differences := state_differences(shapes_of(model), there):
        raise CheckpointError(
            f"checkpoint {path} is of another architecture: {differences}. Use the configuration it was trained with, "
            "or another --output-dir"
        )
