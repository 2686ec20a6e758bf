"""Every head gives the same scores and predictions on a GPU as on the CPU."""

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from synthetic_hest_extended import Design, write_task

from eval.extended import Extended, load_extended
from eval.panels import PanelRule
from eval.protocol import METRICS, evaluate
from eval.settings import HEADS, SOLVERS, FitSettings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CASES = [FitSettings("hest-extended", head, pca=12 if head in ("ridge", "knn") else 256) for head in HEADS]
CASES += [FitSettings("hest-extended", "ridge", pca=12, solver=solver) for solver in SOLVERS if solver != "exact"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Features and task: 6 samples of 3 studies, 600 spots, 24 features, 10 genes, both splits."""
    root = tmp_path_factory.mktemp("bench")
    folder = write_task(root, Design(samples=6, studies=3, spots=600, features=24, genes=14, factors=4))
    task = load_extended(root, "SYNTH", Extended(folds=3, rule=PanelRule(size=10)), progress=False)
    features = {}
    for sample in task.samples:
        with h5py.File(folder / "embeddings" / f"{sample.name}.h5") as file:
            features[sample.name] = file["embeddings"][()]
    return features, task


@pytest.mark.parametrize("settings", CASES, ids=lambda s: f"{s.head}-{s.solver}")
def test_a_gpu_gives_what_the_cpu_gives(data, settings):
    features, task = data
    genes = range(len(task.genes))
    here, there = (evaluate(features, task, settings, keep=genes, device=device) for device in ("cpu", "cuda"))
    # LSQR may stop a step earlier or later; its tolerance is 1e-4.
    tolerance = 1e-3 if settings.solver == "lsqr" else 1e-5
    for ours, theirs in zip(here, there, strict=True):
        for metric in METRICS:
            assert theirs.record[metric]["mean"] == pytest.approx(ours.record[metric]["mean"], abs=tolerance)
        for name, expected in ours.predictions.items():
            assert np.isfinite(expected).all()
            np.testing.assert_allclose(theirs.predictions[name], expected, atol=10 * tolerance)
