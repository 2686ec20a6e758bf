"""Files of tensors by name, written by safetensors or torch.save, read without running code in them."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from dinov2.utils.errors import CheckpointError

TEACHER_FILE = "teacher.safetensors"  # of a training run
_EXPORTED_FILE = "model.safetensors"  # of an export
_CONTAINERS = ("teacher", "model", "state_dict")
_PREFIXES = ("module.", "_orig_mod.", "teacher.", "backbone.")
_HEADS = ("dino_head", "ibot_head")


def find_file(path: Path) -> Path:
    """Return the file of weights that a path means: itself, or the one in a run, checkpoint or export folder.

    Raises:
        CheckpointError: no such file or folder, or a folder without weights.
    """
    if path.is_dir():
        inside = next((path / name for name in (TEACHER_FILE, _EXPORTED_FILE) if (path / name).is_file()), None)
        if inside is None:
            raise CheckpointError(f"{path} holds no {TEACHER_FILE}; give a run folder, a checkpoint folder or the file")
        return inside
    if not path.is_file():
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist")
    return path


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return a safetensors file's metadata and the tensors of its backbone by their bare names.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return metadata, _backbone(load_file(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def read_pth(path: Path) -> tuple[dict[str, Tensor], bool]:
    """Return the tensors of the backbone in a file of torch.save, and whether it holds them bare, without 'teacher'.

    Raises:
        CheckpointError: the file cannot be read without running code in it, or holds no tensors by name.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or unsafe file
        raise CheckpointError(f"{path} cannot be loaded as plain tensors: {error}") from error
    state = content
    if isinstance(content, dict):
        state = next((content[key] for key in _CONTAINERS if key in content), content)
    if not isinstance(content, dict) or not isinstance(state, dict):
        raise CheckpointError(f"{path} holds no dictionary of weights, neither itself nor under 'teacher'")
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    return _backbone(tensors), "teacher" not in content


def _backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the teacher's backbone alone, without the prefixes of wrappers and the chunks of DINOv2's blocks."""
    if any(name.startswith("teacher.") for name in state):
        state = {name: tensor for name, tensor in state.items() if name.startswith("teacher.")}
    tensors = {}
    for name, tensor in state.items():
        if any(head in name for head in _HEADS):
            continue
        while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), ""):
            name = name.removeprefix(prefix)
        # DINOv2 groups blocks into chunks: blocks.CHUNK.INDEX.
        tensors[re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)] = tensor
    return tensors
