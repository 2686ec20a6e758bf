import json
import os
import re

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

from eval import hest_prepare
from eval.errors import EvalError
from eval.hest import main
from eval.hest_cut import cut_patches, pixel_size
from eval.hest_data import load_task
from eval.leakage import find_leaks

tifffile = pytest.importorskip("tifffile", reason="makes the slides that are cut here")
openslide = pytest.importorskip("openslide", reason="reads the slides that are cut here")

NAMES = ("S1", "S2", "S3")


@pytest.fixture
def hest(tmp_path):
    """A HEST-1k folder: three slides, 0.25 um a pixel, with 12 spots each, one of them off the slide."""
    root = tmp_path / "hest"
    for folder in ("wsis", "st", "metadata", "patches"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:700, :900]
    for i, name in enumerate(NAMES):
        image = np.stack([x / 4, y / 4, np.full_like(x, 60 * i)], axis=-1).astype(np.uint8)
        tifffile.imwrite(root / "wsis" / f"{name}.tif", image, tile=(256, 256), photometric="rgb")
        (root / "metadata" / f"{name}.json").write_text(json.dumps({"pixel_size_um_estimated": 0.25}))
        counts = pd.DataFrame(rng.poisson(4.0, size=(12, 9)).astype(np.float32), columns=[f"G{j}" for j in range(9)])
        counts.index = [f"{name}-{j}" for j in range(12)]
        adata = anndata.AnnData(counts)
        centres = np.stack([200 + 40 * np.arange(12), np.full(12, 300)], axis=1)
        centres[11] = (5000, 300)
        adata.obsm["spatial"] = centres
        adata.write_h5ad(root / "st" / f"{name}.h5ad")
    rows = {"sample_id": NAMES, "patient": ["p", "p", "q"], "study": ["a", "a", "b"]}
    pd.DataFrame(rows).to_csv(root / "samples.csv", index=False)
    return root


def command(hest, task, *more):
    return ["prepare", "--hest", str(hest), "--manifest", str(hest / "samples.csv"), "--out", str(task), *more]


def test_a_folder_becomes_a_task(hest, tmp_path, capsys):
    task = tmp_path / "bench" / "CRC"
    assert main(command(hest, task, "--patch-px", "32", "--n-genes", "5")) == 0
    printed = capsys.readouterr().out
    assert "S1: 1 spot(s) outside the slide were left out" in printed
    assert "3 samples, 2 folds by patient" in printed
    loaded = load_task(tmp_path / "bench", "CRC")
    assert len(loaded.genes) == 5
    assert {n: len(e) for n, e in loaded.expression.items()} == dict.fromkeys(NAMES, 11)
    assert [loaded.splits[0].samples(f.test) for f in loaded.splits[0].folds] == [["S1", "S2"], ["S3"]]
    assert loaded.origin("S3").study == "b"
    assert [leak.kind for leak in find_leaks(loaded, loaded.splits[0])] == ["genes"]
    assert main(["--bench-root", str(task.parent), "--tasks", "CRC", "--encoder", "color-stats", "--out",
                 str(tmp_path / "o"), "--protocol", "hest-extended", "--n-genes", "5", "--folds", "3",
                 "--no-report"]) == 0  # fmt: skip


def test_patches_are_centred_and_of_the_asked_scale(hest, tmp_path):
    out = tmp_path / "p.h5"
    written = cut_patches(hest / "wsis" / "S1.tif", hest / "st" / "S1.h5ad", out, mpp0=0.25, mpp=0.5, side=40)
    assert written == (11, 1)
    with h5py.File(out) as file:
        image, centre = file["img"][3].astype(float), file["coords"][3]
        assert file["barcode"][3, 0] == b"S1-3"
    assert centre.tolist() == [320, 300]
    # 40 px at 0.5 um are 80 px of the slide, whose red is x / 4 and whose green is y / 4.
    assert image[..., 0].mean() == pytest.approx(320 / 4, abs=1)
    assert image[..., 1].mean() == pytest.approx(300 / 4, abs=1)
    assert np.ptp(image[20, :, 0]) == pytest.approx(80 / 4, abs=2)


def test_a_damaged_slide_is_named(hest, tmp_path, monkeypatch, capsys):
    def damaged(*_):
        raise openslide.OpenSlideError("JPEG decoding failed")

    monkeypatch.setattr(openslide.OpenSlide, "read_region", damaged)
    assert main(command(hest, tmp_path / "CRC", "--patch-px", "16")) == 2
    assert re.search(r"S1\.tif: damaged around \[200.*JPEG decoding failed", capsys.readouterr().err)
    assert not list((tmp_path / "CRC" / "patches").iterdir())


def test_what_lies_outside_the_slide_is_white(hest, tmp_path):
    adata = anndata.read_h5ad(hest / "st" / "S1.h5ad")
    adata.obsm["spatial"][0] = (0, 0)
    adata.write_h5ad(hest / "st" / "S1.h5ad")
    cut_patches(hest / "wsis" / "S1.tif", hest / "st" / "S1.h5ad", tmp_path / "p.h5", mpp0=0.25, side=40)
    with h5py.File(tmp_path / "p.h5") as file:
        first = file["img"][0]
    assert (first[:18, :18] == 255).all()
    assert (first[22:, 22:, 0] < 60).all()


def test_given_patches_are_taken_and_a_second_run_does_nothing(hest, tmp_path):
    task = tmp_path / "CRC"
    cut_patches(hest / "wsis" / "S2.tif", hest / "st" / "S2.h5ad", hest / "patches" / "S2.h5", mpp0=0.25, side=24)
    (hest / "wsis" / "S2.tif").unlink()
    assert main(command(hest, task, "--patch-px", "24", "--n-genes", "5")) == 0
    files = [task / "patches" / f"{n}.h5" for n in NAMES]
    assert files[1].read_bytes() == (hest / "patches" / "S2.h5").read_bytes()
    before = [os.stat(f).st_mtime_ns for f in files]
    for name in ("S1", "S3"):
        (hest / "wsis" / f"{name}.tif").unlink()  # not needed any more
    assert main(command(hest, task, "--patch-px", "24", "--n-genes", "5")) == 0
    assert [os.stat(f).st_mtime_ns for f in files] == before


def test_one_patient_gives_no_folds_and_takes_old_ones_away(hest, tmp_path, capsys):
    assert main(command(hest, tmp_path / "CRC", "--patch-px", "16", "--n-genes", "5")) == 0
    table = pd.read_csv(hest / "samples.csv").assign(patient="p")
    table.to_csv(hest / "samples.csv", index=False)
    assert main(command(hest, tmp_path / "CRC", "--patch-px", "16")) == 0
    printed = capsys.readouterr().out
    assert "all samples are of one patient" in printed
    assert "0 folds" in printed
    assert not (tmp_path / "CRC" / "splits").exists()


def test_a_task_of_few_common_genes_is_prepared_for_hest_extended(hest, tmp_path, capsys):
    task = tmp_path / "bench" / "CRC"
    assert main(command(hest, task, "--patch-px", "16", "--n-genes", "5")) == 0
    assert main(command(hest, task, "--patch-px", "16", "--n-genes", "50")) == 0
    assert "note: no folds for the protocol hest-benchmark: panel: 9 genes are seen" in capsys.readouterr().out
    assert sorted(p.name for p in task.iterdir()) == ["adata", "patches", "samples.csv"]


def test_an_interruption_leaves_no_half_set_of_folds(hest, tmp_path, monkeypatch):
    task = tmp_path / "CRC"
    original = hest_prepare.write_text

    def interrupted(path, text):
        if path.name == "test_1.csv":
            raise KeyboardInterrupt
        original(path, text)

    monkeypatch.setattr(hest_prepare, "write_text", interrupted)
    assert main(command(hest, task, "--patch-px", "16", "--n-genes", "5")) == 130
    assert not (task / "splits").exists()
    monkeypatch.undo()
    assert main(command(hest, task, "--patch-px", "16", "--n-genes", "5")) == 0
    assert len(list((task / "splits").iterdir())) == 4


def test_another_width_or_scale_cuts_anew(hest, tmp_path, capsys):
    task = tmp_path / "CRC"

    def shapes():
        found = []
        for name in NAMES:
            with h5py.File(task / "patches" / f"{name}.h5") as file:
                found.append((file["img"].shape[1], int(file["coords"].attrs["patch_size"])))
        return found

    cut_patches(hest / "wsis" / "S2.tif", hest / "st" / "S2.h5ad", hest / "patches" / "S2.h5", mpp0=0.25, side=24)
    given = (hest / "patches" / "S2.h5").read_bytes()
    assert main(command(hest, task, "--patch-px", "16", "--n-genes", "5")) == 0
    assert "S2: the patches of HEST-1k are 24 px wide, not 16" in capsys.readouterr().out
    assert shapes() == [(16, 32), (24, 48), (16, 32)]
    assert main(command(hest, task, "--patch-px", "20", "--mpp", "1", "--n-genes", "5", "--cut")) == 0
    assert shapes() == [(20, 80)] * 3
    assert (hest / "patches" / "S2.h5").read_bytes() == given  # a link is replaced, never written through


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda h: (h / "st" / "S2.h5ad").unlink(), r"S2\.h5ad: missing.*there are S1, S3"),
        (lambda h: (h / "wsis" / "S1.tif").unlink(), r"neither patches/S1\.h5 nor wsis/S1\.tif"),
        (lambda h: (h / "wsis" / "S1.tif").write_bytes(b"no slide"), "not a slide that OpenSlide reads"),
        (lambda h: (h / "metadata" / "S1.json").unlink(), "says how large a pixel"),
        (lambda h: (h / "metadata" / "S1.json").write_text("{}"), "no number pixel_size_um_estimated"),
    ],
)
def test_missing_and_broken_files(hest, tmp_path, capsys, damage, message):
    damage(hest)
    assert main(command(hest, tmp_path / "CRC", "--patch-px", "16", "--n-genes", "5")) == 2
    assert re.search(message, capsys.readouterr().err)


def test_coordinates_of_another_image(hest, tmp_path):
    adata = anndata.read_h5ad(hest / "st" / "S1.h5ad")
    adata.obsm["spatial"] += 90_000
    adata.write_h5ad(hest / "st" / "S1.h5ad")
    with pytest.raises(EvalError, match="none of 12 spots lies on the slide of 900 x 700 px"):
        cut_patches(hest / "wsis" / "S1.tif", hest / "st" / "S1.h5ad", tmp_path / "p.h5", mpp0=0.25)
    del adata.obsm["spatial"]
    adata.write_h5ad(hest / "st" / "S1.h5ad")
    with pytest.raises(EvalError, match="no obsm"):
        cut_patches(hest / "wsis" / "S1.tif", hest / "st" / "S1.h5ad", tmp_path / "p.h5", mpp0=0.25)
    assert not (tmp_path / "p.h5").exists()


def test_pixel_sizes(tmp_path):
    (tmp_path / "m.json").write_text('{"pixel_size_um_estimated": -1}')
    with pytest.raises(EvalError, match="above 0"):
        pixel_size(tmp_path / "m.json")
