"""The quickstart's sample data: valid for the evaluation, deterministic, disjoint, and called simulated everywhere."""

import hashlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

from eval.encoders import make_encoder
from eval.hest_data import load_task
from eval.hest_run import Work, evaluate_encoder
from eval.settings import FitSettings

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TASK = "SIMULATED_CMU1"
SMALL = ["--tile-stride", "256", "--patch-stride", "112", "--genes", "12"]


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The two modules of scripts/, which is no package, imported as `python scripts/sample_data.py` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield {name: importlib.import_module(name) for name in ("sample_data", "simulate_expression")}


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of the content of each file; of an h5ad, of its counts and barcodes."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.suffix == ".h5ad":
            adata = anndata.read_h5ad(path)
            content = np.asarray(adata.X).tobytes() + "".join(adata.obs_names).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


@pytest.fixture(scope="module")
def sample(scripts: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quickstart") / "sample"
    assert scripts["sample_data"].main([str(out), *SMALL]) == 0
    return out


def test_the_evaluation_scores_colour_above_chance_and_below_perfection(sample: Path, tmp_path: Path) -> None:
    task = load_task(sample / "bench", TASK)
    encoder = make_encoder("color-stats", pooling="cls+mean", device="cpu", seed=0)
    (row,) = evaluate_encoder(encoder, task, tmp_path, FitSettings(), Work(progress=False))
    assert len(row["folds"]) == 4
    assert 0.15 < row["pcc"]["mean"] < 0.7


def test_another_run_gives_the_same_data(sample: Path, scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    assert scripts["sample_data"].main([str(tmp_path / "again"), *SMALL]) == 0
    assert hashes(tmp_path / "again") == hashes(sample)


def test_counts_follow_the_tissue_and_the_seed(scripts: dict[str, ModuleType]) -> None:
    module = scripts["simulate_expression"]
    features = np.random.default_rng(0).normal(size=(2000, 5))
    quiet = module.Simulation(genes=8, shape=1e6)
    counts = module.simulate_counts(features, quiet, 0)
    assert np.array_equal(counts, module.simulate_counts(features, quiet, 0))
    assert not np.array_equal(counts, module.simulate_counts(features, quiet, 1))
    assert not np.array_equal(counts, module.simulate_counts(features, module.Simulation(genes=8, shape=2.0), 0))
    design = np.column_stack([np.ones(2000), features])
    log_counts = np.log1p(counts)
    rest = log_counts - design @ np.linalg.lstsq(design, log_counts, rcond=None)[0]
    assert (1 - rest.var(0) / log_counts.var(0)).mean() > 0.75  # the rest is Poisson noise


def test_training_and_test_patches_share_no_pixel(sample: Path) -> None:
    task = sample / "bench" / TASK
    owner = np.zeros((2967, 2220), dtype=int)
    for number, path in enumerate(sorted((task / "patches").glob("*.h5")), start=1):
        with h5py.File(path) as file:
            for x, y in file["coords"][()] - 112:
                square = owner[y : y + 224, x : x + 224]
                assert square.shape == (224, 224)
                assert set(np.unique(square)) <= {0, number}
                square[...] = number
    for i in range(4):
        train, test = (set(pd.read_csv(task / "splits" / f"{side}_{i}.csv")["sample_id"]) for side in ("train", "test"))
        assert len(test) == 1
        assert train.isdisjoint(test)
        assert len(train | test) == 4


def test_counts_are_whole_numbers_and_called_simulated(sample: Path) -> None:
    task = sample / "bench" / TASK
    for path in (task / "adata").glob("*.h5ad"):
        adata = anndata.read_h5ad(path)
        counts = np.asarray(adata.X)
        assert (counts >= 0).all()
        assert (counts == counts.round()).all()
        assert "simulated" in adata.uns["expression"]
        assert all(name.startswith("SIM") for name in adata.var_names)
    assert json.loads((task / "var_50genes.json").read_text())["genes"][0] == "SIM001"
    assert set(pd.read_csv(task / "samples.csv")["expression"]) == {"simulated"}
    assert "simulated" in json.loads((sample / "sample_data.json").read_text())["expression"]


def test_a_complete_folder_is_left_alone_and_another_one_is_refused(
    sample: Path, scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = scripts["sample_data"].main
    before = {p: p.stat().st_mtime_ns for p in sample.rglob("*")}
    assert main([str(sample), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "already complete" in printed
    assert "simulated" in printed
    assert {p: p.stat().st_mtime_ns for p in sample.rglob("*")} == before

    assert main([str(sample), *SMALL, "--seed", "5"]) == 2
    assert "other settings" in capsys.readouterr().err

    (tmp_path / "letter.txt").write_text("mine")
    assert main([str(tmp_path), *SMALL]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


def test_strips_without_tissue_are_an_error_and_leave_nothing(
    scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scripts["sample_data"].main([str(tmp_path / "out"), *SMALL, "--strips", "12"]) == 2
    assert "fewer strips" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tiles_hold_tissue(sample: Path) -> None:
    from PIL import Image

    paths = sorted((sample / "tiles").glob("*.png"))
    assert len(paths) > 20
    for path in paths:
        with Image.open(path) as tile:
            assert tile.size == (256, 256)
            pixels = np.asarray(tile).astype(int)
        assert (pixels.max(-1) - pixels.min(-1) > 25).mean() >= 0.4


def test_deconvolution_recovers_the_stains_of_a_synthetic_image(scripts: dict[str, ModuleType]) -> None:
    module = scripts["simulate_expression"]
    stains = np.array([[0.2, 0.1], [0.0, 0.4], [0.5, 0.0]])  # haematoxylin and eosin of three pixels
    vectors = np.array(module.STAINS[:2])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    image = np.round(256 * 10 ** -(stains @ vectors) - 1).astype(np.uint8)[None]  # (1, 3, 3)
    np.testing.assert_allclose(module.stain_densities(image)[:, 0].T, stains, atol=0.01)
