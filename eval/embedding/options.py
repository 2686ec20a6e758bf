"""What an embedding job is asked to do, and which slides it has."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from eval.embedding.sources import PatchSource
from eval.encoders import Encoder

JOB = "embed"
VERSION = 1  # part of every key
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class EmbedOptions:
    """What is asked for, the same for all slides.

    Attributes:
        out: folder of `h5_files`, `pt_files` and `state`.
        batch_size: patches a forward pass.
        precision: of the arithmetic, one of `PRECISIONS`; embeddings are float32 in any case.
        formats: of `feature_files.FORMATS`.
        workers: reading processes; 0 reads in a thread of this one.
        device: where the encoder is, a torch device.
        cache_dir: local folder to which slides are copied before they are read.
    """

    out: Path
    batch_size: int = 64
    precision: str = "fp32"
    formats: tuple[str, ...] = ("h5", "pt")
    workers: int = 0
    device: str = "cpu"
    cache_dir: Path | None = None


@dataclass(frozen=True)
class SlideToEmbed:
    """A slide, and how its patches are found: called late, so that one unusable slide does not end the others.

    Attributes:
        name: without suffix.
        path: the slide, or the file with its patches.
        open: finds the patches.
        empty: whether patching has found no tissue, so that there is nothing to embed.
    """

    name: str
    path: Path
    open: Callable[[], PatchSource]
    empty: bool = False


def embed_settings(encoder: Encoder, options: EmbedOptions) -> dict[str, object]:
    """Return what decides the features of all slides."""
    return {"encoder": dict(encoder.settings), "precision": options.precision, "version": VERSION}
