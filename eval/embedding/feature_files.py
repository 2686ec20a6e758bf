"""Feature files as CLAM and TRIDENT have them: `h5_files/<slide>.h5` (`features`, `coords`), `pt_files/<slide>.pt`."""

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

    Args:
        out: folder of `h5_files` and `pt_files`.
        source: the slide's patches.
        features: (N, D) float32, in the order of `source.coords`.
        encoder: recorded as attributes of `features`.
        formats: of `FORMATS`.
    """
    paths = feature_paths(out, source.name)
    if "pt" in formats:
        import torch

        with replacing(paths["pt"]) as temporary:
            torch.save(torch.from_numpy(features), temporary)
    if "h5" in formats:
        with replacing(paths["h5"]) as temporary, h5py.File(temporary, "w") as file:
            dataset = file.create_dataset("features", data=features)
            dataset.attrs.update({"name": source.name, "savetodir": str(paths["h5"].parent), **encoder})
            file.create_dataset("coords", data=source.coords).attrs.update(source.attributes)
