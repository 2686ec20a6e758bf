"""A small synthetic task in the hest-bench layout; tests damage copies of it to see each error."""

import json
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

GENES = ("GREEN", "RED", "MIX", "NOISE")


def write_sample(task: Path, name: str, n: int, seed: int, px: int = 32) -> None:
    """One section: patches of one colour plus noise, counts that follow the colour (except for the gene NOISE)."""
    rng = np.random.default_rng(seed)
    color = rng.integers(40, 216, size=(n, 3))
    images = np.clip(color[:, None, None, :] + rng.integers(-20, 21, size=(n, px, px, 3)), 0, 255).astype(np.uint8)
    red, green = color[:, 0] / 255, color[:, 1] / 255
    rates = np.stack([40 * green, 40 * red, 20 * (red + green), np.full(n, 5.0)], axis=1)
    barcodes = [f"{name}-{i}" for i in range(n)]
    with h5py.File(task / "patches" / f"{name}.h5", "w") as file:
        file["img"] = images
        file["barcode"] = np.array(barcodes, dtype="S")[:, None]
        file["coords"] = np.zeros((n, 2), dtype=np.int64)
    # The h5ad has the spots in another order, one spot and one gene more.
    order = rng.permutation(n)
    counts = np.vstack([rng.poisson(rates)[order], np.ones((1, 4))])
    frame = pd.DataFrame(counts, index=[*(barcodes[i] for i in order), "off-tissue"], columns=list(GENES))
    frame.insert(0, "UNUSED", 1.0)
    anndata.AnnData(frame.astype(np.float32)).write_h5ad(task / "adata" / f"{name}.h5ad")


def write_splits(task: Path, samples: list[str]) -> None:
    """One fold a held-out sample."""
    rows = pd.DataFrame(
        {
            "sample_id": samples,
            "patches_path": [f"patches/{s}.h5" for s in samples],
            "expr_path": [f"adata/{s}.h5ad" for s in samples],
        }
    )
    for i, held_out in enumerate(samples):
        rows[rows.sample_id == held_out].to_csv(task / "splits" / f"test_{i}.csv", index=False)
        rows[rows.sample_id != held_out].to_csv(task / "splits" / f"train_{i}.csv", index=False)


@pytest.fixture
def make_bench(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a bench root with the task TOY: samples A and B of patient 1, C of patient 2."""

    def make(n: int = 24, task: str = "TOY") -> Path:
        root = tmp_path / "bench"
        for sub in ("patches", "adata", "splits"):
            (root / task / sub).mkdir(parents=True)
        for seed, name in enumerate("ABC"):
            write_sample(root / task, name, n, seed)
        write_splits(root / task, list("ABC"))
        (root / task / "var_50genes.json").write_text(json.dumps({"genes": list(GENES)}))
        pd.DataFrame({"sample_id": list("ABC"), "patient": ["1", "1", "2"]}).to_csv(
            root / task / "samples.csv", index=False
        )
        return root

    return make


@pytest.fixture
def bench(make_bench: Callable[..., Path]) -> Path:
    return make_bench()
