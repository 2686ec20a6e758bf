"""Later calls into one output folder: what they keep, add and mark, and what their reports list."""

import csv
import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest

from eval.patching import process as process_module
from eval.patching import process_list as list_module
from eval.patching.cli import main
from eval.patching.local_copy import run_cache
from eval.patching.locks import alone
from eval.patching.options import PatchOptions, SlideTask
from eval.patching.presets import Preset
from eval.patching.process import process_slide
from eval.patching.state import lock_path, read_state, state_path

SMALL = ("--patch-size", 32, "--set", "a_t=0.01", "mthresh=5")


def patches(*arguments: object) -> int:
    return main([*map(str, arguments), "--quiet"])


def manifest(out: Path) -> dict[str, str]:
    with open(out / "slides.csv", newline="") as file:
        return {Path(row["slide"]).name: row["other_settings"] for row in csv.DictReader(file)}


def times(out: Path, *folders: str) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for folder in folders for p in (out / folder).rglob("*") if p.is_file()}


@pytest.fixture
def slides(tmp_path, write_slide, draw_tissue) -> Path:
    for i in range(3):
        image = draw_tissue((200, 150), [(20 + 10 * i, 10, 150, 100)])
        write_slide(tmp_path / "slides" / f"s{i}.tif", image, (1, 2), mpp=0.5)
    return tmp_path / "slides"


def test_all_slides_then_one_with_other_settings(slides, tmp_path, caplog) -> None:
    out = tmp_path / "out"
    assert patches("--slides", slides, "--out", out, *SMALL) == 0
    assert manifest(out) == {"s0.tif": "", "s1.tif": "", "s2.tif": ""}
    before = times(out, "patches")
    assert patches("--slides", slides / "s1.tif", "--out", out, *SMALL, "keep_ids=0") == 0
    assert manifest(out) == {"s0.tif": "keep_ids=[]", "s1.tif": "", "s2.tif": "keep_ids=[]"}
    assert "2 slides that were patched with other settings" in caplog.text
    assert [p.stem for p, time in times(out, "patches").items() if time != before[p]] == ["s1"]
    with open(out / "process_list_autogen.csv", newline="") as file:
        assert [row["keep_ids"] for row in csv.DictReader(file)] == ["none", "0", "none"]
    summary = json.loads((out / "patches_summary.json").read_text())
    assert (summary["totals"]["slides"], summary["totals"]["done"]) == (3, 3)
    assert "other settings: keep_ids=[]" in (out / "patches_summary.md").read_text()
    # What is gone is not listed, so that a training run on the list can begin.
    (slides / "s0.tif").unlink()
    (out / "patches" / "s2.h5").unlink()
    assert patches("--slides", slides / "s1.tif", "--out", out, *SMALL, "keep_ids=0") == 0
    assert manifest(out) == {"s1.tif": ""}


def test_an_edited_process_list_does_again_what_was_edited(slides, tmp_path) -> None:
    out = tmp_path / "out"
    table = out / "process_list_autogen.csv"
    assert patches("--slides", slides, "--out", out, *SMALL) == 0
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["seg_level"] for row in rows} == {"1"}  # the level that -1 has chosen
    rows[1] |= {"contour_fn": "four_pt_hard", "process": "1"}
    rows[2] |= {"process": "1"}  # to be done, but nothing has changed
    with open(tmp_path / "edited.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    before = times(out, "patches")
    command = ("--slides", slides, "--out", out, "--patch-size", 32, "--process-list", tmp_path / "edited.csv")
    for _ in range(2):
        assert patches(*command) == 0
        assert [p.stem for p, time in times(out, "patches").items() if time != before[p]] == ["s1"]
        assert manifest(out) == {"s0.tif": "", "s1.tif": "", "s2.tif": ""}
        totals = json.loads((out / "patches_summary.json").read_text())["totals"]
        assert (totals["done"], totals["not_begun"]) == (3, 0)
    after = times(out, "patches")
    assert patches("--slides", slides, "--out", out, "--patch-size", 32, "--process-list", table) == 0
    assert times(out, "patches") == after


PRESET = Preset(mthresh=5, a_t=0.01)


@pytest.fixture
def task(slides) -> SlideTask:
    return SlideTask("s0", slides / "s0.tif", PRESET)


@pytest.fixture
def options(tmp_path) -> PatchOptions:
    return PatchOptions(tmp_path / "out", patch_size=32)


def run(options, task):
    return process_slide(options, task, lambda _: None)


def test_a_format_of_pixels_is_added_and_none_is_lost(options, task, monkeypatch) -> None:
    first = run(replace(options, pixels=("jpeg",)), task)
    before = times(options.out, "tiles", "patches", "masks")
    assert run(options, task) == first
    monkeypatch.setattr(process_module, "segment", lambda *_: pytest.fail("segmented again"))
    added = run(replace(options, pixels=("tar",)), task)
    assert (added.status, added.key, added.patches, added.details) == ("done", first.key, first.patches, first.details)
    assert times(options.out, "tiles", "patches", "masks") == before
    shards = times(options.out, "shards")
    assert len(shards) == 1
    both = run(replace(options, pixels=("h5", "jpeg")), task)
    assert both.status == "done"
    assert process_module.missing_outputs(replace(options, pixels=("h5", "jpeg", "tar")), task, both) == set()
    assert times(options.out, "tiles") | times(options.out, "shards") == shards | {
        path: time for path, time in before.items() if "tiles" in path.parts
    }
    assert run(replace(options, pixels=("h5",)), task) == both


def test_pixels_that_cannot_be_added_leave_the_rest(options, task, monkeypatch) -> None:
    done = run(options, task)
    before = times(options.out, "patches", "masks")
    with monkeypatch.context() as patch:
        patch.setattr(process_module, "read_patch", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        assert run(replace(options, pixels=("tar",)), task).status == "failed"
    assert times(options.out, "patches", "masks") == before
    again = run(options, task)
    assert (again.status, again.patches, again.details) == ("done", done.patches, done.details)


def test_another_picture_is_drawn_without_new_coordinates(options, task) -> None:
    first = run(replace(options, pixels=("tar",)), task)
    before = times(options.out, "patches", "shards", "masks")
    other = replace(task, preset=replace(PRESET, line_thickness=400))
    assert run(options, other).key == first.key
    assert [p.suffix for p, time in times(options.out, "patches", "shards", "masks").items() if time != before[p]] == [
        ".jpg"
    ]
    assert run(replace(options, overview=False), task).key == first.key


def test_a_slide_at_which_another_process_is_stays_as_it_is(options, task, monkeypatch) -> None:
    monkeypatch.setattr("dinov2.utils.file_lock.PATIENCE_SECONDS", 0.0)
    with alone(lock_path(options.out, "patches", "s0"), "slide s0"):
        state = run(options, task)
    assert (state.status, read_state(state_path(options.out, "patches", "s0"))) == ("running", None)
    assert "another process (process " in state.reason
    assert run(options, task).status == "done"
    assert not list(options.out.rglob("*.lock"))


def test_reports_that_cannot_be_written_hide_no_outcome(slides, tmp_path, capsys, caplog, monkeypatch) -> None:
    (slides / "text.svs").write_text("no slide")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(list_module, "write_text", full)
    assert patches("--slides", slides, "--out", tmp_path / "out", *SMALL) == 1
    printed = capsys.readouterr()
    assert "failed: text: " in printed.err
    assert "4 slides: 3 done" in printed.out
    assert "the reports are not up to date: [Errno 28]" in caplog.text


def test_a_given_pixel_size_fills_gaps_and_contradicts_nothing(
    slides, tmp_path, write_slide, draw_tissue, capsys
) -> None:
    write_slide(slides / "unknown.tif", draw_tissue((200, 150), [(20, 10, 150, 100)]), mpp=None)
    command = ("--slides", slides, "--out", tmp_path / "out", *SMALL)
    assert patches(*command) == 1
    before = times(tmp_path / "out", "patches")
    assert patches(*command, "--mpp", 0.505) == 0  # within 2% of what the other slides say
    assert {p: times(tmp_path / "out", "patches")[p] for p in before} == before
    details = {s["name"]: s["mpp0"] for s in json.loads((tmp_path / "out/patches_summary.json").read_text())["slides"]}
    assert details == {"s0": 0.5, "s1": 0.5, "s2": 0.5, "unknown": 0.505}
    capsys.readouterr()
    assert patches(*command, "--mpp", 0.25) == 1
    errors = capsys.readouterr().err
    assert errors.count("--mpp 0.25 was given") == errors.count("this one say 0.5 um per px") == 3
    assert "failed: unknown" not in errors
    table = tmp_path / "mpp.csv"
    table.write_text("slide_id,mpp\ns0.tif,0.25\ns1.tif,0.25\ns2.tif,0.25\n")
    assert patches(*command, "--mpp", 0.25, "--mpp-csv", table) == 0
    assert read_state(state_path(tmp_path / "out", "patches", "s0")).details["mpp0"] == 0.25


def test_the_cache_of_a_killed_run_is_removed(tmp_path) -> None:
    with run_cache(tmp_path) as living:
        dead = tmp_path / "run-0123"
        dead.mkdir()
        dead.with_suffix(".lock").touch()
        with run_cache(tmp_path) as other:
            assert living.is_dir()
            assert other.is_dir()
            assert not dead.exists()
    assert list(tmp_path.iterdir()) == []


def test_blank_patches_are_not_looked_for_again(options, task, monkeypatch) -> None:
    options = replace(options, drop_blank=True)
    first = run(options, task)
    (options.out / "masks" / "s0.jpg").unlink()
    monkeypatch.setattr(process_module, "is_blank", lambda *_: pytest.fail("read all pixels again"))
    again = run(options, task)
    assert (again.status, again.patches, again.details) == ("done", first.patches, first.details)
    assert (options.out / "masks" / "s0.jpg").exists()
