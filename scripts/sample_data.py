"""Sample data for the quickstart: real H&E tiles of a CC0 slide, and a task whose expression is SIMULATED.

From `scripts/data/cmu-1-small-region.svs` this writes

  OUT/tiles/*.png              256 px tissue tiles for pretraining, overlapping
  OUT/bench/SIMULATED_CMU1/    a task in the public hest-bench layout: 224 px patches, one sample a strip of the slide
  OUT/sample_data.json         settings and counts

No gene was ever measured on this slide: the counts of the genes SIM001, SIM002, ... are simulated from stain densities
and tissue structure of each patch (see simulate_expression.py). The samples share no pixel, so neither do training and
test patches of a fold; the pretraining tiles, which carry no expression, cover the whole slide.
"""

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from simulate_expression import FEATURES, Simulation, gene_names, measure, simulate_counts

SLIDE = Path(__file__).resolve().parent / "data" / "cmu-1-small-region.svs"
UM_PER_PX = 0.499
TASK = "SIMULATED_CMU1"
TILE = 256
PATCH = 224
RECORD = "sample_data.json"
WHAT = "simulated from stain densities and tissue structure; no gene was measured"
EXAMPLES = """
examples:
  python scripts/sample_data.py quickstart_output/sample
  python scripts/sample_data.py small_sample --tile-stride 256 --patch-stride 112 --genes 10

A finished OUT of the same settings is left as it is. Exit codes: 0 done, 2 something given is wrong.
"""

Image8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Settings:
    """All that decides the sample data."""

    seed: int = 0
    tile_stride: int = 64
    patch_stride: int = 56
    strips: int = 4
    min_tissue: float = 0.4
    simulation: Simulation = field(default_factory=Simulation)


class SampleDataError(ValueError):
    """Something given cannot be used."""


def make_sample_data(out: Path, settings: Settings) -> bool:
    """Write the sample data, whole or not at all.

    Args:
        out: folder, absent, empty, or holding sample data of the same settings.
        settings: strides, samples and simulation.

    Returns:
        Whether anything was written; False if `out` was complete already.

    Raises:
        SampleDataError: `out` holds something else, or the settings give no data.
    """
    record = out / RECORD
    if record.is_file():
        if json.loads(record.read_text())["settings"] == asdict(settings):
            return False
        raise SampleDataError(f"{out} holds sample data of other settings. Give another folder, or remove it.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SampleDataError(f"{out} is not empty and holds no finished sample data. Give another folder.")
    image = read_slide(SLIDE)
    unfinished = out.absolute().with_name(f".{out.absolute().name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        spots = write_task(image, unfinished / "bench" / TASK, settings)
        tiles = write_tiles(image, unfinished / "tiles", settings)
    except SampleDataError:
        shutil.rmtree(unfinished)
        raise
    record_text = json.dumps(
        {"expression": WHAT, "settings": asdict(settings), "tiles": tiles, "patches": spots}, indent=1
    )
    (unfinished / RECORD).write_text(record_text + "\n")
    os.replace(unfinished, out)
    return True


def read_slide(path: Path) -> Image8:
    """The first level as RGB, (H, W, 3); Pillow decodes this file exactly as OpenSlide does."""
    if not path.is_file():
        raise SampleDataError(f"{path}: missing. It belongs to the repository; restore it with `git checkout`.")
    with Image.open(path) as slide:
        return np.asarray(slide.convert("RGB"))


def tissue_corners(image: Image8, size: int, stride: int, min_tissue: float) -> NDArray[np.int64]:
    """Corners (x, y) of the grid's squares of which at least `min_tissue` is stained: (N, 2)."""
    stained = image.max(axis=2).astype(np.int64) - image.min(axis=2) > 25  # (H, W)
    sums = np.pad(stained.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    ys, xs = (np.arange(0, n - size + 1, stride) for n in image.shape[:2])
    x, y = (a.ravel() for a in np.meshgrid(xs, ys))
    tissue = sums[y + size, x + size] - sums[y, x + size] - sums[y + size, x] + sums[y, x]
    return np.column_stack([x, y])[tissue >= min_tissue * size**2].astype(np.int64)


def crop(image: Image8, corner: NDArray[np.int64], size: int) -> Image8:
    """The square of side `size` whose upper left corner is (x, y)."""
    x, y = corner
    return image[y : y + size, x : x + size]


def write_tiles(image: Image8, folder: Path, settings: Settings) -> int:
    """Write the pretraining tiles and return their number."""
    folder.mkdir(parents=True)
    corners = tissue_corners(image, TILE, settings.tile_stride, settings.min_tissue)
    for x, y in corners:
        tile = Image.fromarray(crop(image, np.array([x, y]), TILE))
        tile.save(folder / f"cmu1_x{x:04d}_y{y:04d}.png", compress_level=3)
    return len(corners)


def strips(image: Image8, count: int) -> dict[str, tuple[int, Image8]]:
    """Cut the slide into horizontal strips that share no pixel: sample -> (its first row, its pixels)."""
    edges = np.linspace(0, len(image), count + 1).astype(int)
    return {f"CMU1_STRIP{i + 1}": (int(edges[i]), image[edges[i] : edges[i + 1]]) for i in range(count)}


def write_task(image: Image8, task: Path, settings: Settings) -> dict[str, int]:
    """Write the task in the hest-bench layout and return the number of patches of each sample."""
    for name in ("patches", "adata", "splits"):
        (task / name).mkdir(parents=True)
    samples = strips(image, settings.strips)
    corners: dict[str, NDArray[np.int64]] = {}
    features: dict[str, NDArray[np.float64]] = {}
    for name, (_, pixels) in samples.items():
        corners[name] = tissue_corners(pixels, PATCH, settings.patch_stride, settings.min_tissue)
        if len(corners[name]) < 2:
            raise SampleDataError(
                f"sample {name} has {len(corners[name])} patches of {PATCH} px; each needs 2. Use fewer strips or a "
                f"smaller patch stride (now {settings.strips} and {settings.patch_stride})."
            )
        features[name] = measure(pixels, corners[name], PATCH)
    counts = simulate_counts(np.concatenate(list(features.values())), settings.simulation, settings.seed)
    ends = np.cumsum([len(c) for c in corners.values()])[:-1]
    for (name, (top, pixels)), values in zip(samples.items(), np.split(counts, ends), strict=True):
        barcodes = [f"{name}_{x}x{y}" for x, y in corners[name]]
        centres = corners[name] + np.array([PATCH // 2, top + PATCH // 2])
        patches = np.stack([crop(pixels, c, PATCH) for c in corners[name]])
        write_patches(task / "patches" / f"{name}.h5", patches, barcodes, centres)
        write_expression(task / "adata" / f"{name}.h5ad", values, barcodes, features[name], centres, settings)
    write_tables(task, list(samples), settings)
    return {name: len(c) for name, c in corners.items()}


def write_patches(path: Path, patches: Image8, barcodes: list[str], centres: NDArray[np.int64]) -> None:
    """Write a sample's patches; `coords` are their centres in pixels of the slide."""
    with h5py.File(path, "w") as file:
        options = {"compression": "gzip", "compression_opts": 2}
        file.create_dataset("img", data=patches, chunks=(1, *patches.shape[1:]), **options)
        file.create_dataset("barcode", data=np.array(barcodes, dtype="S")[:, None])
        file.create_dataset("coords", data=centres).attrs.update(pixel_size=UM_PER_PX, patch_size_target=PATCH)


def write_expression(
    path: Path,
    counts: NDArray[np.int64],
    barcodes: list[str],
    features: NDArray[np.float64],
    centres: NDArray[np.int64],
    settings: Settings,
) -> None:
    """Write a sample's simulated counts with the measurements behind them (`obs`)."""
    obs = pd.DataFrame(features, index=barcodes, columns=list(FEATURES))
    var = pd.DataFrame(index=gene_names(settings.simulation.genes))
    adata = anndata.AnnData(counts.astype(np.float32), obs=obs, var=var)
    adata.obsm["spatial"] = centres
    adata.uns["expression"] = WHAT
    adata.uns["simulated"] = {"seed": settings.seed, **asdict(settings.simulation)}
    adata.write_h5ad(path, compression="gzip")


def write_tables(task: Path, samples: list[str], settings: Settings) -> None:
    """Write the gene panel, the samples and one fold a held-out sample."""
    (task / "var_50genes.json").write_text(json.dumps({"genes": gene_names(settings.simulation.genes)}) + "\n")
    facts = pd.DataFrame({"sample_id": samples, "patient": "CMU-1", "study": TASK, "expression": "simulated"})
    facts.to_csv(task / "samples.csv", index=False)
    files = {"patches_path": [f"patches/{s}.h5" for s in samples], "expr_path": [f"adata/{s}.h5ad" for s in samples]}
    rows = pd.DataFrame({"sample_id": samples, **files})
    for i, held_out in enumerate(samples):
        rows[rows["sample_id"] == held_out].to_csv(task / "splits" / f"test_{i}.csv", index=False)
        rows[rows["sample_id"] != held_out].to_csv(task / "splits" / f"train_{i}.csv", index=False)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = _parser().parse_args(argv)
    settings = Settings(
        seed=args.seed,
        tile_stride=args.tile_stride,
        patch_stride=args.patch_stride,
        strips=args.strips,
        simulation=Simulation(genes=args.genes),
    )
    try:
        written = make_sample_data(args.out, settings)
    except SampleDataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    record = json.loads((args.out / RECORD).read_text())
    patches = ", ".join(f"{name} {n}" for name, n in record["patches"].items())
    print(f"{args.out}: {'written' if written else 'already complete'}")
    print(f"  tiles: {record['tiles']} of {TILE} px")
    print(f"  task {TASK}: patches {patches}; {args.genes} genes, expression {WHAT}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must be absent, empty or complete")
    positive: Any = {"type": _positive, "metavar": "N"}
    parser.add_argument("--tile-stride", **positive, default=64, help="px between pretraining tiles (default 64)")
    parser.add_argument("--patch-stride", **positive, default=56, help="px between patches (default 56)")
    parser.add_argument("--strips", type=_several, metavar="N", default=4, help="samples, one fold each (default 4)")
    parser.add_argument("--genes", **positive, default=50, help="simulated genes (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated expression (default 0)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: it must be 1 or more")
    return value


def _several(text: str) -> int:
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"{value}: it must be 2 or more, one to test on and others to train on")
    return value


if __name__ == "__main__":
    sys.exit(main())
