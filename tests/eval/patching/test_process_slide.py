"""One slide: what is written, what a rerun does, and what goes wrong with one slide only."""

import errno
import json
import tarfile
from dataclasses import replace

import h5py
import numpy as np
import pytest
from PIL import Image

from dinov2.slides import open_slide, read_coordinates
from dinov2.slides.coordinates import read_patch
from eval.patching import process as process_module
from eval.patching.options import PatchOptions, SlideTask
from eval.patching.presets import Preset
from eval.patching.process import process_slide
from eval.patching.state import read_state, state_path

PRESET = Preset(mthresh=5, a_t=0.05, a_h=0.02)


@pytest.fixture
def slide(tmp_path, write_slide, draw_tissue):
    image = draw_tissue((700, 500), [(50, 60, 450, 400)], [(200, 200, 330, 330)])
    return write_slide(tmp_path / "slides" / "a.tif", image, (1, 2), mpp=0.5)


@pytest.fixture
def task(slide) -> SlideTask:
    return SlideTask("a", slide, PRESET)


@pytest.fixture
def options(tmp_path) -> PatchOptions:
    return PatchOptions(tmp_path / "out", patch_size=32)


def run(options, task):
    counts = []
    state = process_slide(options, task, counts.append)
    return state, sum(counts)


def files(out):
    return {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}


def test_what_is_written(options, task) -> None:
    state, _ = run(options, task)
    assert (state.status, state.attempts, state.reason) == ("done", 1, "")
    expected = {"patches/a.h5", "contours_geojson/a.geojson", "masks/a.jpg", "state/patches/a.json"}
    assert files(options.out) == expected
    coordinates = read_coordinates(options.out / "patches" / "a.h5")
    assert len(coordinates) == state.patches > 80
    centres = coordinates.coords + 16
    assert ((centres > (50 - 20, 60 - 20)) & (centres < (450 + 20, 400 + 20))).all()
    assert not ((centres > 202) & (centres < 328)).all(axis=1).any()
    features = json.loads((options.out / "contours_geojson" / "a.geojson").read_text())["features"]
    rings = features[0]["geometry"]["coordinates"]
    assert [len(features), len(rings)] == [1, 2]
    assert all(ring[0] == ring[-1] for ring in rings)
    assert Image.open(options.out / "masks" / "a.jpg").size == (350, 250)
    assert read_state(state_path(options.out, "patches", "a")) == state


@pytest.mark.parametrize("where", [{"level": 0}, {"level": 1}, {"level": None, "target_mpp": 0.7}])
def test_pixels_are_those_of_the_slide(options, task, where) -> None:
    options = replace(options, pixels=("h5", "jpeg", "tar"), **where)
    state, written = run(options, task)
    assert written == state.patches > 20
    with h5py.File(options.out / "patches" / "a.h5") as file, open_slide(task.path) as slide:
        coordinates = read_coordinates(options.out / "patches" / "a.h5")
        expected = np.stack([read_patch(slide, coordinates.geometry, x, y) for x, y in file["coords"]])
        np.testing.assert_array_equal(file["imgs"][()], expected)
        assert file["img"] == file["imgs"]
        if where.get("level") is not None:
            x, y = file["coords"][7].tolist()
            np.testing.assert_array_equal(expected[7], slide.read_region((x, y), where["level"], (32, 32)))
    with tarfile.open(options.out / "shards" / "a.tar") as tar:
        names = tar.getnames()
        first = np.asarray(Image.open(tar.extractfile(names[0])).convert("RGB")).astype(int)
    assert sorted(names) == sorted(f"a_{x}_{y}.jpg" for x, y in coordinates.coords)
    assert {p.name for p in (options.out / "tiles" / "a").iterdir()} == {n.removeprefix("a_") for n in names}
    index = [f"a_{x}_{y}.jpg" for x, y in coordinates.coords].index(names[0])
    assert np.abs(first - expected[index]).mean() < 12  # JPEG, on noise


def test_a_rerun_does_nothing(options, task) -> None:
    first, _ = run(options, task)
    path = options.out / "patches" / "a.h5"
    before = path.stat().st_mtime_ns
    again, written = run(options, task)
    assert (again, written, path.stat().st_mtime_ns) == (first, 0, before)


@pytest.mark.parametrize("lost", ["patches/a.h5", "contours_geojson/a.geojson", "masks/a.jpg"])
def test_a_lost_file_is_made_again(options, task, lost) -> None:
    first, _ = run(options, task)
    (options.out / lost).unlink()
    again, _ = run(options, task)
    assert (options.out / lost).exists()
    assert (again.attempts, again.key) == (2, first.key)


def test_other_settings_or_another_slide_are_done_again(options, task, write_slide, draw_tissue) -> None:
    keys = {run(options, task)[0].key}
    for changed, other in (
        (replace(options, patch_size=48), task),
        (replace(options, overlap=8), task),
        (replace(options, level=1), task),
        (options, replace(task, preset=replace(PRESET, sthresh=30))),
        (options, replace(task, mpp=0.4)),
    ):
        state, _ = run(changed, other)
        assert (state.status, state.attempts) == ("done", 1)
        keys.add(state.key)
    write_slide(task.path, draw_tissue((700, 500), [(50, 60, 450, 300)]), (1, 2), mpp=0.5)
    keys.add(run(options, task)[0].key)
    assert len(keys) == 7


def test_files_of_other_settings_do_not_stay_when_new_ones_fail(options, task) -> None:
    run(replace(options, pixels=("tar", "jpeg")), task)
    state, _ = run(replace(options, level=5), task)
    assert (state.status, state.patches) == ("failed", 0)
    assert "level 5 does not exist; there are 2 (0: 700 x 500, 1: 350 x 250)" in state.reason
    assert files(options.out) == {"state/patches/a.json"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 600}, "a patch is 600 level-0 px wide and high, more than the slide's 700 x 500"),
        ({"level": None, "target_mpp": 0.1}, "patches would be enlarged 5.00 times"),
        ({"level": None, "target_mpp": 20}, "more than the slide's"),
    ],
)
def test_impossible_patches(options, task, changes, message) -> None:
    state, _ = run(replace(options, **changes), task)
    assert state.status == "failed"
    assert message in state.reason


def test_a_slide_without_resolution(options, tmp_path, write_slide, draw_tissue) -> None:
    path = write_slide(tmp_path / "slides" / "b.tif", draw_tissue((300, 300), [(50, 50, 250, 250)]), mpp=None)
    state, _ = run(options, SlideTask("b", path, PRESET))
    assert state.status == "failed"
    assert "micrometres per px unknown" in state.reason
    assert run(options, SlideTask("b", path, PRESET, mpp=0.5))[0].status == "done"


def test_no_tissue_and_no_fitting_patch(options, tmp_path, write_slide, draw_tissue) -> None:
    path = write_slide(tmp_path / "slides" / "white.tif", draw_tissue((300, 300), []))
    state, _ = run(options, SlideTask("white", path, PRESET))
    assert (state.status, state.patches) == ("empty", 0)
    assert "no px is more saturated than sthresh 15" in state.reason
    assert files(options.out) == {"contours_geojson/white.geojson", "masks/white.jpg", "state/patches/white.json"}
    assert run(options, SlideTask("white", path, PRESET))[0] == state
    path = write_slide(tmp_path / "slides" / "thin.tif", draw_tissue((300, 300), [(0, 100, 300, 120)]))
    preset = replace(PRESET, mthresh=1, a_t=0, contour_fn="four_pt_hard")
    state, _ = run(replace(options, patch_size=128), SlideTask("thin", path, preset))
    assert (state.status, state.reason) == ("empty", "no patch of 128 level-0 px fits four_pt_hard")


def test_blank_patches_are_dropped_when_asked_to(options, task) -> None:
    task = replace(task, preset=replace(PRESET, max_n_holes=0))
    every, _ = run(options, task)
    kept, _ = run(replace(options, drop_blank=True), task)
    assert 0 < kept.patches < every.patches
    with open_slide(task.path) as slide:
        coordinates = read_coordinates(options.out / "patches" / "a.h5")
        pixels = [read_patch(slide, coordinates.geometry, x, y) for x, y in coordinates.coords]
    assert all(p.std() > 5 for p in pixels)


def test_a_full_disk_in_the_middle_of_a_slide(options, task, monkeypatch) -> None:
    options = replace(options, pixels=("h5", "tar", "jpeg"))
    calls = []

    def read(*arguments):
        calls.append(arguments)
        if len(calls) == 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        return read_patch(*arguments)

    monkeypatch.setattr(process_module, "read_patch", read)
    state, _ = run(options, task)
    assert state.status == "failed"
    assert "No space left on device" in state.reason
    assert files(options.out) == {"contours_geojson/a.geojson", "masks/a.jpg", "state/patches/a.json"}
    again, _ = run(options, task)
    assert (again.status, again.attempts) == ("done", 2)


def test_leftovers_of_a_killed_process_are_removed(options, task) -> None:
    run(options, task)
    stale = [options.out / "patches" / ".a.h5.999.tmp", options.out / "tiles" / ".a.tmp" / "1_1.jpg"]
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    state = read_state(state_path(options.out, "patches", "a"))
    process_module.write_state(state_path(options.out, "patches", "a"), replace(state, status="running"))
    again, _ = run(replace(options), task)
    assert (again.status, again.attempts) == ("done", 2)
    assert not any(path.exists() for path in stale)


def test_an_unforeseen_error_is_one_slides_failure(options, task, monkeypatch) -> None:
    monkeypatch.setattr(process_module, "segment", lambda *_: 1 / 0)
    state, _ = run(options, task)
    assert (state.status, state.reason) == ("failed", "ZeroDivisionError: division by zero")
    assert "segment" in state.details["traceback"]


def test_a_local_copy_gives_the_same_and_is_removed(options, task, tmp_path) -> None:
    run(options, task)
    before = (options.out / "patches" / "a.h5").read_bytes()
    (options.out / "patches" / "a.h5").unlink()
    state, _ = run(replace(options, cache_dir=tmp_path / "local"), task)
    assert (state.status, state.attempts) == ("done", 2)
    assert list((tmp_path / "local").iterdir()) == []
    with h5py.File(options.out / "patches" / "a.h5") as file:
        assert file["coords"].attrs["slide"] == str(task.path)
    assert (options.out / "patches" / "a.h5").read_bytes() == before
