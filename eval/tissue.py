"""Small pictures of sections for the report: every patch, shrunk to a tile, at its place on the slide.

They depend on the data alone, so that all encoders and splits of a results folder share one file,
`maps/<task>-tissue-<data>.npz`, with `<sample>/image` (H, W, 3) uint8 and `<sample>/extent` (4,).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import KDTree

from dinov2.utils.files import replacing
from eval.errors import EvalError, nearest
from eval.hest_data import Task, open_h5
from eval.maps import coordinates, has_places

SIDE, TILE = 384, 16  # px of a picture's longer side and of a patch, at most
DEFAULT_SAMPLES = 2
BATCH = 64


@dataclass(frozen=True)
class Tissue:
    """`image` (H, W, 3), and in the unit of the coordinates where its left, right, bottom and top edges lie."""

    image: NDArray[np.uint8]
    extent: NDArray[np.float64]


def draw_tissue(patches: Path) -> Tissue:
    """Draw a patches file with coordinates (see `has_places`); a tile is as wide as neighbouring patches are apart."""
    with open_h5(patches) as file:
        images = file["img"]
        places = coordinates(patches, len(images))  # (N, 2)
        distinct = np.unique(places, axis=0)
        apart = float(np.median(KDTree(distinct).query(distinct, k=2)[0][:, 1]))
        low, span = places.min(axis=0), np.ptp(places, axis=0)
        tile = int(np.clip(SIDE // (span.max() / apart + 1), 1, TILE))
        scale = min(tile / apart, SIDE / span.max())  # px a unit
        corners = np.round((places - low) * scale).astype(int)  # (N, 2)
        width, height = corners.max(axis=0) + tile
        canvas = np.full((height, width, 3), 255, dtype=np.uint8)
        for start in range(0, len(images), BATCH):  # one by one, a chunk of many would be unpacked for each of them
            for (x, y), patch in zip(corners[start : start + BATCH], images[start : start + BATCH], strict=True):
                small = Image.fromarray(patch).resize((tile, tile), Image.Resampling.BOX)
                canvas[y : y + tile, x : x + tile] = small
    left, top = low - tile / scale / 2
    return Tissue(canvas, np.array([left, left + width / scale, top + height / scale, top]))


def check_map_samples(tasks: Sequence[Task], wanted: Sequence[str]) -> None:
    """Raise EvalError for a sample that is in none of the tasks, or has no coordinates to draw it by."""
    samples = {sample.name: (sample, task) for task in tasks for sample in task.samples}
    for name in wanted:
        if name not in samples:
            raise EvalError(f"--map-samples {name}: in no task. {nearest(name, samples)}")
        sample, task = samples[name]
        if not has_places(coordinates(sample.patches, len(task.expression[name]))):
            raise EvalError(f"--map-samples {name}: {sample.patches} has no coordinates (coords), so it has no map.")


def map_samples(task: Task, wanted: Sequence[str] = ()) -> list[str]:
    """The wanted samples that are the task's; without any, those with coordinates and most held-out spots."""
    own = {sample.name: sample for sample in task.samples}
    if chosen := [name for name in wanted if name in own]:
        return chosen
    held_out = {name for split in task.splits for fold in split.folds for name in split.samples(fold.test)}
    order = sorted(held_out, key=lambda name: (-len(task.expression[name]), name))
    placed = (n for n in order if has_places(coordinates(own[n].patches, len(task.expression[n]))))
    return [name for _, name in zip(range(DEFAULT_SAMPLES), placed, strict=False)]


def write_tissue(folder: Path, task: Task, samples: Sequence[str]) -> None:
    """Draw these samples into the task's file, unless it has them already."""
    path = folder / tissue_name(task.name, task.content_hash())
    if list(read_tissue(path)) == list(samples):
        return
    patches = {sample.name: sample.patches for sample in task.samples}
    arrays: dict[str, Any] = {}
    for name in samples:
        drawn = draw_tissue(patches[name])
        arrays |= {f"{name}/image": drawn.image, f"{name}/extent": drawn.extent}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_tissue(path: Path) -> Mapping[str, Tissue]:
    """Sample -> picture, in the order of writing; empty where there is no file."""
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as file:
        names = [key.removesuffix("/image") for key in file.files if key.endswith("/image")]
        return {name: Tissue(file[f"{name}/image"], file[f"{name}/extent"]) for name in names}


def tissue_name(task: str, content_hash: str) -> str:
    """The file of a task's pictures in the folder of the maps."""
    return f"{task}-tissue-{content_hash[:12]}.npz"
