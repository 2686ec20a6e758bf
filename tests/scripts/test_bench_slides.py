"""The benchmark programs of slides: they run with tiny sizes and write what was promised."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dinov2.slides import open_slide

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The modules of scripts/bench, which is no package."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        names = ("common", "patching", "embed", "pyramid", "slide_peers")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in {path.stem for path in BENCH.glob("*.py")} & (set(sys.modules) - before):
        sys.modules.pop(name)


def quick(bench, program, tmp_path, *options: str) -> dict:
    path = tmp_path / "out.json"
    assert bench.common.run(program, ["--quick", "--threads", "1", "--json", str(path), *options]) == 0
    content = json.loads(path.read_text())
    assert {"machine", "command", "rows", "ratios"} <= set(content)
    assert all(value > 0 for value in content["ratios"].values())
    return content


def test_patching(bench, tmp_path) -> None:
    slide = bench.pyramid.make_pyramid(tmp_path / "small.tif", 2000)
    content = quick(bench, bench.patching.program, tmp_path, "--slides", str(slide))
    whats = {row["what"] for row in content["rows"]}
    assert {"coordinates: ours", "coordinates: loop", "pixels: ours", "pixels: loop", "command"} <= whats
    assert "small.tif: coordinates, ours over the loop" in content["ratios"]
    assert "growth: coordinates, 2.2 over the time for twice the pixels" in content["ratios"]
    assert "memory after 1 slides over that after 2" in content["ratios"]
    assert "memory after 1 slides over that after 2 with pixels in h5" in content["ratios"]
    assert "small.tif: pixels on all cores, ours over the loop" in content["ratios"]


def test_pyramids_that_are_compared_have_the_same_levels(bench, tmp_path) -> None:
    factors = bench.pyramid.level_factors(5000)
    assert factors == (1, 4, 16)
    path = bench.pyramid.make_pyramid(tmp_path / "a.tif", 3500, factors=factors)
    assert bench.pyramid.level_factors(3500) == (1, 4)
    with open_slide(path) as slide:
        assert [round(value) for value in slide.level_downsamples] == [1, 4, 16]


def test_embed(bench, tmp_path) -> None:
    content = quick(bench, bench.embed.program, tmp_path, "--encoder", "color-stats")
    assert {row["what"] for row in content["rows"]} >= {"embed", "end to end"}
    assert set(content["ratios"]) == {"end to end over embed", "memory at slide 1 over that at 2"}


def test_a_pyramid_holds_the_slides_tissue_at_every_level(bench, tmp_path) -> None:
    path = bench.pyramid.make_pyramid(tmp_path / "a.tif", 3000)
    with open_slide(path) as slide, open_slide(bench.pyramid.SVS) as source:
        assert slide.level_dimensions == ((3000, 3000), (750, 750))
        tissue = source.read_region((400, 1000), 0, (400, 400))
        assert np.abs(slide.read_region((400, 1000), 0, (400, 400)).astype(int) - tissue).mean() < 6  # JPEG
        small = tissue.reshape(100, 4, 100, 4, 3).mean(axis=(1, 3))
        assert np.abs(slide.read_region((400, 1000), 1, (100, 100)) - small).mean() < 6
        assert (slide.read_region((0, 0), 0, (250, 250)) > 240).all()


def test_a_wrong_result_is_not_timed(bench, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(bench.patching, "loop_coordinates", lambda *_: np.zeros((1, 2), np.int64))
    slide = bench.pyramid.make_pyramid(tmp_path / "small.tif", 2000)
    assert bench.common.run(bench.patching.program, ["--quick", "--slides", str(slide)]) == 1
