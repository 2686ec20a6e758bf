"""Real slides and a large pyramid made of one: pixels are OpenSlide's own, coordinates do not depend on the workers."""

import importlib
import sys
from pathlib import Path

import h5py
import numpy as np
import openslide
import pytest

from eval.patching.cli import main

ROOT = Path(__file__).resolve().parents[3]
SVS = ROOT / "scripts" / "data" / "cmu-1-small-region.svs"
TCGA = ROOT.parent / "shared" / "data" / "slides" / "tcga-cr-7395-01a-01-ts1.svs"


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory) -> Path:
    """6,000 px a side, three levels, tissue of the real slide in the middle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts" / "bench"))
        module = importlib.import_module("pyramid")
        sys.modules.pop("pyramid")
    return module.make_pyramid(tmp_path_factory.mktemp("pyramid") / "pyramid.tif", 6000)


def patches(out: Path, slide: Path, *arguments: object) -> dict[str, np.ndarray]:
    """Patch a slide, and return what its file has."""
    given = ("--slides", slide, "--out", out, "--mpp-csv", _sizes(out), "--no-overview", "--quiet", *arguments)
    assert main([str(argument) for argument in given]) == 0
    with h5py.File(out / "patches" / f"{slide.stem}.h5") as file:
        return {name: file[name][()] for name in file}


def _sizes(out: Path) -> Path:
    table = out.with_suffix(".csv")
    table.write_text(f"slide_id,mpp\n{SVS.name},0.5\n{TCGA.name},0.5\npyramid.tif,0.5\n")
    return table


def check_pixels(slide: Path, found: dict[str, np.ndarray], level: int, side: int) -> None:
    with openslide.OpenSlide(slide) as opened:
        for (x, y), image in zip(found["coords"].tolist(), found["imgs"], strict=True):
            expected = np.asarray(opened.read_region((x, y), level, (side, side)))[..., :3]
            np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("slide", [SVS, pytest.param(TCGA, marks=pytest.mark.shared)], ids=["cmu", "tcga"])
def test_pixels_of_real_slides(tmp_path, slide) -> None:
    if not slide.exists():
        pytest.skip("the shared data are not beside the checkout")
    found = patches(tmp_path / "out", slide, "--step", 900, "--pixels", "h5")
    assert len(found["coords"]) >= 4
    check_pixels(slide, found, 0, 256)


def test_pixels_of_a_coarser_level(tmp_path, pyramid) -> None:
    found = patches(tmp_path / "out", pyramid, "--level", 1, "--patch-size", 128, "--pixels", "h5")
    assert len(found["coords"]) > 60
    check_pixels(pyramid, found, 1, 128)
    inside = (found["coords"] > 600 - 512) & (found["coords"] < 5400)
    assert inside.all()


@pytest.mark.slow
@pytest.mark.parametrize(("slide", "preset"), [(SVS, "biopsy"), (TCGA, "tcga"), ("pyramid", "tcga")])
def test_coordinates_do_not_depend_on_workers_or_reruns(tmp_path, pyramid, slide, preset) -> None:
    slide = pyramid if slide == "pyramid" else slide
    if not slide.exists():
        pytest.skip("the shared data are not beside the checkout")
    first = patches(tmp_path / "a", slide, "--preset", preset, "--pixels", "h5")
    assert len(first["coords"]) > 20
    for out, workers in (("b", 2), ("a", 3)):
        again = patches(tmp_path / out, slide, "--preset", preset, "--pixels", "h5", "--workers", workers)
        for name, array in first.items():
            np.testing.assert_array_equal(again[name], array)
