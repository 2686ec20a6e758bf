"""From slides to embeddings with our own tools only: patches, training on them, and embedding with what was trained."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from dinov2.data.pack import main as pack_main
from dinov2.slides import open_slide
from dinov2.train.trainer import Trainer
from eval.embedding.cli import main as embed_main
from eval.encoders import make_encoder
from eval.patching.cli import main as patch_main

SIDE = 64


@pytest.fixture
def patched(tmp_path, write_slide, draw_tissue) -> Path:
    """A folder with two slides in `slides` and their patches in `patched`."""
    folder = tmp_path / "tissue"
    for i in range(2):
        write_slide(folder / "slides" / f"s{i}.tif", draw_tissue((400, 400), [(10 + 20 * i, 10, 390, 390)]))
    command = ["--slides", folder / "slides", "--out", folder / "patched", "--patch-size", SIDE, "--set", "a_t=0.1"]
    assert patch_main([*map(str, command), "--quiet"]) == 0
    return folder


def train_and_embed(small, folder: Path, dataset: str, run: Path) -> None:
    """Train for two steps, embed both slides, and compare with the encoder on pixels read by hand."""
    assert Trainer(small(train={"dataset_path": dataset, "max_steps": 2}), run).run() == 0
    arguments = ["--checkpoint", run, "--slides", folder / "slides", "--coords", folder / "patched"]
    assert embed_main([*map(str, arguments), "--out", str(run / "features"), "--device", "cpu", "--quiet"]) == 0
    encoder = make_encoder(f"checkpoint:{run}")
    for name in ("s0", "s1"):
        with h5py.File(run / "features" / "h5_files" / f"{name}.h5") as file:
            features, coords = file["features"][()], file["coords"][()]
        with open_slide(folder / "slides" / f"{name}.tif") as slide:
            images = np.stack([slide.read_region((int(x), int(y)), 0, (SIDE, SIDE)) for x, y in coords])
        assert len(features) > 20
        assert features.std(axis=0).min() > 0
        np.testing.assert_allclose(features, encoder.embed(images), atol=1e-5)


def test_training_on_the_slides_themselves(small, patched, tmp_path) -> None:
    place = patched / "patched"
    train_and_embed(small, patched, f"Slides:manifest={place}/slides.csv:coords={place}", tmp_path / "run")


@pytest.mark.parametrize("kind", ["tar", pytest.param("h5", marks=pytest.mark.slow)])
def test_training_on_packed_patches(small, patched, tmp_path, kind) -> None:
    place, packed = patched / "patched", tmp_path / "packed"
    spec = f"Slides:manifest={place}/slides.csv:coords={place}"
    assert pack_main([spec, "--out", str(packed), "--format", kind]) == 0
    given = f"H5:root={packed}" if kind == "h5" else f"Tar:shards={packed}/*.tar"
    train_and_embed(small, patched, given, tmp_path / "run")
