"""A synthetic HEST-Extended task with a planted signal and a planted study effect, and embeddings to go with it.

Every spot has a few hidden tissue factors, which show in its features and drive its counts in the same way everywhere;
that is what a good encoder predicts on a new study. Every study also has a signature of its own in the features and an
offset of its own in each gene; a random split learns the one from the other and looks good, a split by study cannot.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse
from numpy.typing import NDArray
from tqdm import tqdm

from dinov2.utils.errors import UserError
from dinov2.utils.files import replacing, write_text

EXAMPLES = """examples:
  # small: 8 samples of 4 studies, seconds
  python scripts/synthetic_hest_extended.py synthetic --samples 8 --studies 4 --spots 1200 --features 32 --genes 60
  python -m eval.hest --protocol hest-extended --encoder precomputed:synthetic/SYNTH/embeddings color-stats \\
      --bench-root synthetic --tasks SYNTH --n-genes 50 --out results/synthetic
  # the size of the real one: 54 samples, 150,000 spots, about 0.6 GB
  python scripts/synthetic_hest_extended.py synthetic_full

writes OUT/SYNTH/patches, adata, samples.csv, and embeddings/<sample>.h5 for --encoder precomputed:OUT/SYNTH/embeddings
Exit codes: 0 written, 2 something given is wrong.
"""


@dataclass(frozen=True)
class Design:
    """Sizes and strengths.

    Attributes:
        samples, studies, spots, features, genes: numbers; spots over all samples.
        factors: hidden tissue factors.
        signal: standard deviation of a gene's log rate from the factors.
        study_effect: standard deviation of a study's offset of a gene's log rate.
        noise: standard deviation of the features' own noise, relative to their signal.
        seed: decides everything.
    """

    samples: int = 54
    studies: int = 8
    spots: int = 150_000
    features: int = 384
    genes: int = 300
    factors: int = 16
    signal: float = 0.25
    study_effect: float = 1.0
    noise: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.studies <= self.samples:
            raise UserError(
                f"{self.studies} studies of {self.samples} samples: each study needs a sample, at least one"
            )
        if self.spots < 4 * self.samples:
            raise UserError(f"{self.spots} spots for {self.samples} samples: there must be four or more for each")
        if min(self.features, self.genes, self.factors) < 1:
            raise UserError("features, genes and factors must each be 1 or more")


@dataclass(frozen=True)
class Section:
    """One sample: its name, study, patient, and for its N spots the features, counts and coordinates."""

    name: str
    study: str
    patient: str
    features: NDArray[np.float32]  # (N, D)
    counts: NDArray[np.int64]  # (N, G)
    coords: NDArray[np.int64]  # (N, 2)


def gene_names(count: int) -> list[str]:
    """GENE0001, ..."""
    return [f"GENE{i + 1:04d}" for i in range(count)]


def sections(design: Design) -> Iterator[Section]:
    """Draw the samples one after the other; samples of one study have two to a patient."""
    rng = np.random.default_rng(design.seed)
    k, d, g = design.factors, design.features, design.genes
    spectrum = np.logspace(0, -1.5, k)
    into_features = rng.normal(size=(k, d)) * spectrum[:, None]
    signatures = rng.normal(size=(design.studies, d))
    into_genes = rng.normal(size=(k, g)) / np.sqrt(k) * design.signal
    base = rng.uniform(np.log(1.0), np.log(20.0), size=g)
    offsets = rng.normal(size=(design.studies, g)) * design.study_effect
    share = rng.dirichlet(np.full(design.samples, 8.0))
    sizes = np.maximum(4, np.floor(share * design.spots).astype(int))
    sizes[np.argmax(sizes)] += design.spots - sizes.sum()
    for i, n in enumerate(sizes):
        study = i % design.studies
        side = int(np.ceil(np.sqrt(n)))
        coords = np.stack([np.arange(n) % side, np.arange(n) // side], axis=1)  # (N, 2)
        factors = _smooth_factors(coords / side, k, rng)  # (N, K)
        features = factors @ into_features + signatures[study] + design.noise * rng.normal(size=(n, d))
        rates = np.exp(np.clip(base + factors @ into_genes + offsets[study], None, 8))
        yield Section(
            name=f"S{i:03d}",
            study=f"study {study + 1}",
            patient=f"study {study + 1}, patient {i // design.studies // 2 + 1}",
            features=features.astype(np.float32),
            counts=rng.poisson(rates),
            coords=coords * 224 + 112,
        )


def _smooth_factors(place: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Waves over the slide, (N, count), each with mean 0 and variance 1: neighbouring spots are alike."""
    wave = rng.uniform(2, 12, size=(2, count)) * rng.choice([-1, 1], size=(2, count))
    values = np.sin(place @ wave + rng.uniform(0, 2 * np.pi, size=count)) + 0.7 * rng.normal(size=(len(place), count))
    return np.asarray((values - values.mean(axis=0)) / values.std(axis=0))


def write_task(out: Path, design: Design, *, patch_px: int = 8, progress: bool = False) -> Path:
    """Write OUT/SYNTH and return it; files appear whole or not at all."""
    task = out / "SYNTH"
    genes = [*gene_names(design.genes), "BLANK_0001", "NegControl_1"]
    rows = []
    for section in tqdm(sections(design), total=design.samples, unit="sample", disable=not progress):
        n = len(section.counts)
        barcodes = np.array([f"{section.name}-{i}" for i in range(n)], dtype="S")
        colour = np.clip(128 + 40 * section.features[:, :3], 0, 255).astype(np.uint8)  # (N, 3)
        with replacing(task / "patches" / f"{section.name}.h5") as path, h5py.File(path, "w") as file:
            file["img"] = np.broadcast_to(colour[:, None, None, :], (n, patch_px, patch_px, 3))
            file["barcode"] = barcodes[:, None]
            file["coords"] = section.coords
        with replacing(task / "embeddings" / f"{section.name}.h5") as path, h5py.File(path, "w") as file:
            file["embeddings"] = section.features
            file["barcode"] = barcodes[:, None]
        controls = np.ones((n, 2), dtype=np.int64)
        counts = scipy.sparse.csr_matrix(np.hstack([section.counts, controls]).astype(np.float32))
        adata = anndata.AnnData(counts, pd.DataFrame(index=barcodes.astype(str)), pd.DataFrame(index=genes))
        with replacing(task / "adata" / f"{section.name}.h5ad") as path:
            adata.write_h5ad(path)
        rows.append((section.name, section.patient, section.study))
    write_text(task / "samples.csv", pd.DataFrame(rows, columns=["sample_id", "patient", "study"]).to_csv(index=False))
    return task


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when written, 2 when something given is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="bench root; the task is OUT/SYNTH")
    design = Design()
    for name in ("samples", "studies", "spots", "features", "genes", "factors", "seed"):
        parser.add_argument(
            f"--{name}", type=int, default=getattr(design, name), help=f"default: {getattr(design, name):,}"
        )
    for name in ("signal", "study-effect", "noise"):
        value = getattr(design, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=float, default=value, help=f"default: {value}")
    args = parser.parse_args(argv)
    values = {k: v for k, v in vars(args).items() if k != "out"}
    try:
        task = write_task(args.out, Design(**values), progress=True)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written: {task} ({args.samples} samples, {args.spots:,} spots; embeddings in {task / 'embeddings'})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
