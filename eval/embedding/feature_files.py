"""Feature files as CLAM and TRIDENT have them: `h5_files/<slide>.h5` (`features`, `coords`), `pt_files/<slide>.pt`."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dinov2.utils.files import replacing
from eval.embedding.sources import PatchSource

FORMATS = ("h5", "pt")


def feature_paths(out: Path, name: str) -> dict[str, Path]:
    """Return the files of a slide by format."""
    return {"h5": out / "h5_files" / f"{name}.h5", "pt": out / "pt_files" / f"{name}.pt"}


def write_features(
    out: Path, source: PatchSource, features: NDArray[np.float32], encoder: Mapping[str, Any], formats: tuple[str, ...]
) -> None:
    """Write a slide's embeddings, each file whole or not at all.

    The files are put together in memory: a write that fails inside HDF5 leaves the library in pieces.

    Args:
        out: folder of `h5_files` and `pt_files`.
        source: the slide's patches.
        features: (N, D) float32, in the order of `source.coords`.
        encoder: recorded as attributes of `features`.
        formats: of `FORMATS`.

    Raises:
        OSError: the disk is full, say.
    """
    paths = feature_paths(out, source.name)
    if "pt" in formats:
        import torch

        buffer = io.BytesIO()
        torch.save(torch.from_numpy(features), buffer)
        with replacing(paths["pt"]) as temporary:
            temporary.write_bytes(buffer.getbuffer())
    if "h5" in formats:
        with h5py.File(paths["h5"].name, "w", driver="core", backing_store=False) as file:
            dataset = file.create_dataset("features", data=features)
            dataset.attrs.update({"name": source.name, "savetodir": str(paths["h5"].parent), **encoder})
            coords = file.create_dataset("coords", data=source.coords)
            coords.attrs.update({"name": source.name, **source.attributes})
            file.flush()
            content = file.id.get_file_image()
        with replacing(paths["h5"]) as temporary:
            temporary.write_bytes(content)
