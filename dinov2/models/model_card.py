"""The model card that goes with exported weights: what they are, how they were trained as far as it is recorded, use.

Only facts that the checkpoint holds are stated. The licence is left to whoever publishes the weights.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dinov2
from dinov2.models.checkpoint_files import TRAINED
from dinov2.models.loading_recipes import LOADING, TRIDENT
from dinov2.models.weights import LoadedBackbone


@dataclass(frozen=True)
class CardFacts:
    """What a card states about an export besides the backbone: format, size (px), pooling, name and arguments in timm.

    `difference` is the largest one between the embeddings of the files and of the backbone they were made from.
    """

    file_format: str
    size: int
    pooling: str
    architecture: str
    arguments: dict[str, Any]
    difference: float


def model_card(loaded: LoadedBackbone, facts: CardFacts) -> str:
    """Return the README of an export, with the YAML front matter that Hugging Face reads."""
    width = loaded.model.embed_dim
    values = {
        "name": loaded.name,
        "architecture": facts.architecture,
        "arguments": "".join(f", {key}={value!r}" for key, value in facts.arguments.items()),
        "width": width,
        "dim": width * (2 if facts.pooling == "cls+mean" else 1),
        "size": facts.size,
        "mean": tuple(loaded.mean),
        "std": tuple(loaded.std),
    }
    model = 'model = torch.jit.load("FOLDER/model.torchscript.pt")'
    if facts.file_format in ("timm", "safetensors"):
        model = (
            f'import dinov2.models\nmodel = timm.create_model("{facts.architecture}", '
            f'checkpoint_path="FOLDER/model.safetensors"{values["arguments"]})'
        )
    trident = "" if facts.file_format == "onnx" else "\nWith TRIDENT:\n\n" + TRIDENT.format(model=model, **values)
    return "\n".join(
        [
            _front_matter(loaded, facts),
            f"# {loaded.name}\n",
            _description(loaded, facts),
            "## Loading\n\n`FOLDER` is the folder of this file.\n",
            LOADING[facts.file_format].format(**values) + trident,
            "## Images\n",
            f"RGB in [0, 1], normalised by mean {_numbers(loaded.mean)} and standard deviation {_numbers(loaded.std)}, "
            f"{facts.size} x {facts.size} px.\n",
            "## Training\n",
            _training(loaded),
        ]
    )


def _front_matter(loaded: LoadedBackbone, facts: CardFacts) -> str:
    library = {"timm": "timm", "onnx": "onnx"}.get(facts.file_format, "pytorch")
    lines = ["---", "# license: not stated; set one before publishing", f"library_name: {library}"]
    lines += ["pipeline_tag: image-feature-extraction", "tags:"]
    tags = ["dinov2", "image-feature-extraction", loaded.name.replace("_", "-")]
    return "\n".join([*lines, *(f"- {tag}" for tag in tags), "---"])


def _description(loaded: LoadedBackbone, facts: CardFacts) -> str:
    spec = loaded.model.spec
    blocks = ", then ".join(f"{g.count} x ({g.sequence_mixer}, {g.channel_mixer})" for g in spec.blocks)
    rows = {
        "blocks": blocks,
        "width": spec.embed_dim,
        "heads": spec.num_heads,
        "patch size": f"{spec.patch_size} px",
        "CLS token": f"{spec.cls_position} of the sequence",
        "registers": spec.num_register_tokens,
        "position embedding": spec.pos_embed,
        "parameters": f"{sum(p.numel() for p in loaded.model.parameters()):,}",
        "embedding": f"{facts.pooling}, {spec.embed_dim * (2 if '+' in facts.pooling else 1)} values",
        "SHA-256 of the weights": f"`{loaded.weights_hash}`",
        "largest difference to the original on random images": f"{facts.difference:.1e}",
        "written by": f"dinov2-pathology {dinov2.__version__}",
    }
    return _table(rows)


def _training(loaded: LoadedBackbone) -> str:
    if loaded.origin != TRAINED:
        return "The weights were imported; nothing about their training is recorded in them.\n"
    train, crops, optim = (loaded.config[section] for section in ("train", "crops", "optim"))
    batch = train["global_batch_size"]
    rows = {
        "method": "DINOv2 (arXiv 2304.07193)",
        "data": f"`{train['dataset_path']}`" if train["dataset_path"] else "not recorded",
        "steps": "not recorded" if loaded.iteration is None else loaded.iteration,
        "images a step": batch or f"{train['batch_size_per_gpu']} on each process, whose number is not recorded",
        "base learning rate": f"{optim['base_lr']}, {optim['scaling_rule']}",
        "global crops": f"2 of {crops['global_crops_size']} px, scale {_numbers(crops['global_crops_scale'])}",
        "local crops": f"{crops['local_crops_number']} of {crops['local_crops_size']} px, "
        f"scale {_numbers(crops['local_crops_scale'])}",
        "seed": train["seed"],
    }
    return _table(rows)


def _table(rows: dict[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items()), ""])


def _numbers(values: Sequence[float]) -> str:
    return json.dumps(list(values))
