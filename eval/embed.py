"""Embeds patches once: batches with a progress bar, and a cache on disk keyed by content.

A cached file's name is the sha256 of everything that decides its embeddings: the encoder's settings (weights hash,
normalisation, input size, pooling) and the bytes of the patches file. Names and dates play no part, so a retrained
checkpoint or a changed patches file never meets an old embedding. Files are written under a temporary name and renamed:
an interrupted run resumes at the sample it had not finished.

`python -m eval.embed` embeds whole slides; that is `eval.embedding`.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dinov2.utils.files import replacing
from eval.encoders import Encoder, encoder_key
from eval.errors import EvalError
from eval.hest_data import Task, open_h5
from eval.mapped import mapped_dataset
from eval.prefetch import prefetch
from eval.splits import Sample

logger = logging.getLogger(__name__)

# Part of every key: raise it when the arithmetic of embedding changes without a setting that says so.
CACHE_VERSION = 1


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a task: sample -> (N, D) float32, and how many patches were embedded now rather than reused."""

    features: Mapping[str, NDArray[np.float32]]
    embedded: int


def embed_task(encoder: Encoder, task: Task, cache: Path, *, batch_size: int = 64, progress: bool = True) -> Embeddings:
    """Return the embeddings of all samples of a task, from the cache where they are there.

    Args:
        encoder: see `eval.encoders`.
        task: a loaded task.
        cache: folder of the cached files; made if absent.
        batch_size: patches a forward pass.
        progress: show a bar with the remaining time.

    Raises:
        EvalError: an embedding is NaN or infinite.
    """
    cache.mkdir(parents=True, exist_ok=True)
    features: dict[str, NDArray[np.float32]] = {}
    missing: list[tuple[Sample, Path]] = []
    for sample in task.samples:
        path = cache / f"{cache_key(encoder, task.content[sample.name])}.h5"
        cached = _read(path, len(task.expression[sample.name]))
        if cached is None:
            missing.append((sample, path))
        else:
            features[sample.name] = cached
    total = sum(len(task.expression[s.name]) for s, _ in missing)
    hidden = not (progress and total)
    with tqdm(total=total, unit="patch", desc=f"{encoder.name} on {task.name}", disable=hidden) as bar:
        for sample, path in missing:
            embedded = embed_file(encoder, sample.patches, batch_size=batch_size, bar=bar)
            _write(path, embedded, encoder, sample)
            stored = _read(path, len(embedded))  # which may be more than fits into memory together
            features[sample.name] = embedded if stored is None else stored
    return Embeddings({s.name: features[s.name] for s in task.samples}, total)


def cache_key(encoder: Encoder, content: str) -> str:
    """sha256 of the encoder's key and the patches file's sha256."""
    return hashlib.sha256(f"{CACHE_VERSION} {encoder_key(encoder)} {content}".encode()).hexdigest()


def embed_file(encoder: Encoder, path: Path, *, batch_size: int = 64, bar: "tqdm | None" = None) -> NDArray[np.float32]:
    """Embed the `img` dataset of a patches file in its order: (N, H, W, 3) uint8 -> (N, D) float32.

    Raises:
        EvalError: an embedding is NaN or infinite.
    """
    parts: list[NDArray[np.float32]] = []
    # Reading, above all decompression, takes a part of the time that the forward pass does: they go on side by side.
    with open_h5(path) as file, closing(prefetch(_batches(file["img"], batch_size))) as batches:
        for start, batch in batches:
            part = encoder.embed(batch)  # (B, D)
            if not np.isfinite(part).all():
                first = start + int(np.flatnonzero(~np.isfinite(part).all(axis=1))[0])
                raise EvalError(
                    f"encoder {encoder.name}: NaN or infinite embedding for patch {first} of {path}; they must be "
                    "finite. Look for NaN in the checkpoint's weights (diverged training) or evaluate an earlier one."
                )
            parts.append(part)
            if bar is not None:
                bar.update(len(batch))
    return np.concatenate(parts)


def _batches(images: h5py.Dataset, size: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Where each batch starts, and its patches (B, H, W, 3)."""
    for start in range(0, len(images), size):
        yield start, images[start : start + size]


def _read(path: Path, n_patches: int) -> NDArray[np.float32] | None:
    """Return the cached embeddings, mapped; None, which embeds anew, where there is no file or it cannot be used."""
    if not path.is_file():
        return None
    try:
        with h5py.File(path, "r") as file:
            features = mapped_dataset(path, file["embeddings"])
    except (OSError, KeyError) as error:
        logger.warning("%s: unreadable cached embeddings (%s): embedding again", path, error)
        return None
    return features if len(features) == n_patches and np.isfinite(features).all() else None


def _write(path: Path, features: NDArray[np.float32], encoder: Encoder, sample: Sample) -> None:
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("embeddings", data=features)
        # For people who look into the file; the program goes by the key alone.
        file.attrs["encoder"] = json.dumps({"name": encoder.name, **encoder.settings})
        file.attrs["sample"] = sample.name


if __name__ == "__main__":
    try:
        from eval.embedding.cli import main
    except ImportError as missing:
        print(f"error: {missing}. Slides need the extra packages: pip install '.[slides]'", file=sys.stderr)
        sys.exit(2)
    sys.exit(main())
