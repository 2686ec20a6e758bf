"""The formats of an export: which files each writes into a folder, and how what was written is run again.

| format | files | for |
|---|---|---|
| safetensors | model.safetensors, config.json | this package, Hugging Face |
| timm | model.safetensors, config.json of timm | timm, TRIDENT |
| torchscript | model.torchscript.pt | any program with PyTorch |
| onnx | model.onnx, and model.onnx.data beyond 1 GiB | any program with onnxruntime |
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from dinov2.models.export_graph import Embedder, Pooling, run_onnx, run_torchscript, write_onnx, write_torchscript
from dinov2.models.registry import get_spec
from dinov2.models.spec import SIZES, BackboneSpec
from dinov2.models.weights import LoadedBackbone, load_backbone, save_backbone
from dinov2.utils.config import config_from_dict
from dinov2.utils.files import write_text

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
TORCHSCRIPT_FILE, ONNX_FILE = "model.torchscript.pt", "model.onnx"
_WEIGHTS = (WEIGHTS_FILE, CONFIG_FILE)
_ONLY_TRAINING = ("name", "drop_path_rate", "drop_path_uniform", "dt_init")


TIMM_POOLS = {"cls": "token", "mean": "avg", "cls+mean": "token+avg"}


def pool_argument(pooling: Pooling) -> dict[str, str]:
    """Return the argument by which `timm.create_model` pools so; none for the CLS token, which is its default."""
    return {} if pooling == "cls" else {"global_pool": TIMM_POOLS[pooling]}


@dataclass(frozen=True)
class Export:
    """What is exported: a backbone, the side of its images (px) and the pooling of its outputs."""

    loaded: LoadedBackbone
    size: int
    pooling: Pooling

    def embedder(self) -> Embedder:
        """Return the backbone with its pooling."""
        return Embedder(self.loaded.model, self.pooling).eval()


@dataclass(frozen=True)
class Format:
    """`write(export, folder)` writes `files`; `run(export, folder, images)` embeds images (B, 3, S, S) by them."""

    files: tuple[str, ...]
    write: Callable[[Export, Path], None]
    run: Callable[[Export, Path, Tensor], Tensor]


def timm_architecture(spec: BackboneSpec) -> tuple[str, dict[str, Any]]:
    """Return the name of a backbone in timm, and the arguments that make it this one (JSON-able)."""
    name = spec.name
    if not name.startswith("vit_"):
        sizes = {(values["embed_dim"], values["num_heads"]): size for size, values in SIZES.items()}
        name = f"{name}_{sizes.get((spec.embed_dim, spec.num_heads), 'small')}"
    usual = get_spec(name)
    values = {field.name: getattr(spec, field.name) for field in fields(spec) if field.name not in _ONLY_TRAINING}
    arguments = {key: value for key, value in values.items() if value != getattr(usual, key)}
    if "blocks" in arguments:
        arguments["blocks"] = [f"{g.count} x {g.sequence_mixer} + {g.channel_mixer}" for g in spec.blocks]
    return name, arguments


def properties(export: Export) -> dict[str, Any]:
    """Return what a user of an export needs to know of it: architecture, images, pooling, hash of the weights."""
    loaded, spec = export.loaded, export.loaded.model.spec
    architecture, arguments = timm_architecture(spec)
    return {
        "architecture": architecture,
        "model_args": arguments,
        "num_features": spec.embed_dim,
        "num_register_tokens": spec.num_register_tokens,
        "patch_size": spec.patch_size,
        "image_size": export.size,
        "mean": list(loaded.mean),
        "std": list(loaded.std),
        "pooling": export.pooling,
        "weights_sha256": loaded.weights_hash,
    }


def _write_weights(export: Export, folder: Path) -> None:
    loaded = export.loaded
    config = config_from_dict(loaded.config)
    config.evaluation.input_size = export.size
    state = loaded.model.state_dict()
    save_backbone(folder / WEIGHTS_FILE, state, config, loaded.iteration, loaded.origin)


def _write_safetensors(export: Export, folder: Path) -> None:
    _write_weights(export, folder)
    write_text(folder / CONFIG_FILE, json.dumps({"model_type": "dinov2-pathology"} | properties(export), indent=2))


def _run_safetensors(export: Export, folder: Path, images: Tensor) -> Tensor:
    return Embedder(load_backbone(folder / WEIGHTS_FILE).model, export.pooling)(images)


def _write_timm(export: Export, folder: Path) -> None:
    _write_weights(export, folder)
    known = properties(export)
    config = {
        "architecture": known["architecture"],
        "num_classes": 0,
        "num_features": known["num_features"],
        "global_pool": TIMM_POOLS[export.pooling],
        "pretrained_cfg": {
            "input_size": [3, export.size, export.size],
            "mean": known["mean"],
            "std": known["std"],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        "model_args": known["model_args"] | pool_argument(export.pooling),
    }
    write_text(folder / CONFIG_FILE, json.dumps(config, indent=2))


def _run_timm(export: Export, folder: Path, images: Tensor) -> Tensor:
    import timm

    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return model(images)


def _texts(export: Export) -> dict[str, str]:
    return {CONFIG_FILE: json.dumps(properties(export))}


FORMATS: dict[str, Format] = {
    "safetensors": Format(_WEIGHTS, _write_safetensors, _run_safetensors),
    "timm": Format(_WEIGHTS, _write_timm, _run_timm),
    "torchscript": Format(
        (TORCHSCRIPT_FILE,),
        lambda export, folder: write_torchscript(
            export.embedder(), export.size, folder / TORCHSCRIPT_FILE, _texts(export)
        ),
        lambda export, folder, images: run_torchscript(folder / TORCHSCRIPT_FILE, images),
    ),
    "onnx": Format(
        (ONNX_FILE, f"{ONNX_FILE}.data"),
        lambda export, folder: write_onnx(export.embedder(), export.size, folder / ONNX_FILE, _texts(export)),
        lambda export, folder, images: run_onnx(folder / ONNX_FILE, images),
    ),
}


def files_of_others(file_format: str, folder: Path) -> list[str]:
    """Return the files in a folder that another format writes: they would not belong to the export in it."""
    names = {name for known in FORMATS.values() for name in known.files} - set(FORMATS[file_format].files)
    return sorted(name for name in names if (folder / name).exists())
