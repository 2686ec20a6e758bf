"""`python -m eval.patches`, as a user runs it: real and damaged slides, workers, shards, exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from dinov2.data.datasets.slides import Slides
from eval.patching.cli import main

ROOT = Path(__file__).resolve().parents[3]
SVS = ROOT / "scripts" / "data" / "cmu-1-small-region.svs"
TCGA = ROOT.parent / "shared" / "data" / "slides" / "tcga-cr-7395-01a-01-ts1.svs"


def patches(*arguments: object) -> int:
    return main([*map(str, arguments), "--quiet"])


def coords(out: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted((out / "patches").glob("*.h5")):
        with h5py.File(path) as file:
            found[path.stem] = file["coords"][()]
    return found


@pytest.fixture
def slides(tmp_path, write_slide, draw_tissue) -> Path:
    for i in range(4):
        image = draw_tissue((400, 300), [(20 + 10 * i, 30, 300, 200 + 20 * i)])
        write_slide(tmp_path / "slides" / f"s{i}.tif", image, mpp=0.5)
    return tmp_path / "slides"


SMALL = ("--patch-size", 32, "--set", "a_t=0.05", "mthresh=5")


def test_coordinates_do_not_depend_on_workers_shards_or_reruns(slides, tmp_path) -> None:
    assert patches("--slides", slides, "--out", tmp_path / "one", *SMALL) == 0
    assert patches("--slides", slides, "--out", tmp_path / "two", "--workers", 3, *SMALL) == 0
    for i in range(2):
        assert patches("--slides", slides, "--out", tmp_path / "shards", "--shard", f"{i}/2", *SMALL) == 0
    expected = coords(tmp_path / "one")
    assert set(expected) == {"s0", "s1", "s2", "s3"}
    assert patches("--slides", slides, "--out", tmp_path / "one", "--workers", 2, *SMALL) == 0
    for out in ("one", "two", "shards"):
        found = coords(tmp_path / out)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
    summary = json.loads((tmp_path / "shards" / "patches_summary.json").read_text())
    assert (summary["totals"]["slides"], summary["totals"]["done"]) == (4, 4)


def test_bad_slides_fail_alone_and_a_rerun_finishes(slides, tmp_path, capsys, write_slide, draw_tissue) -> None:
    (slides / "text.svs").write_text("no slide")
    (slides / "cut.svs").write_bytes(SVS.read_bytes()[:900_000])
    write_slide(slides / "white.tif", draw_tissue((300, 300), []))
    out = tmp_path / "out"
    assert patches("--slides", slides, "--out", out, *SMALL) == 1
    printed = capsys.readouterr()
    assert "7 slides: 4 done, 1 without tissue, 2 failed" in printed.out
    assert "failed: text: " in printed.err
    assert "not a TIFF file" in printed.err
    assert "empty: white: no tissue" in printed.err
    assert set(coords(out)) == {"s0", "s1", "s2", "s3"}
    shutil.copy(SVS, slides / "cut.svs")
    (slides / "text.svs").unlink()
    times = {path: path.stat().st_mtime_ns for path in (out / "patches").iterdir()}
    assert patches("--slides", slides, "--out", out, *SMALL) == 3
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert set(coords(out)) == {"s0", "s1", "s2", "s3", "cut"}
    rows = (out / "process_list_autogen.csv").read_text().splitlines()
    assert rows[1].startswith("cut.svs,0,processed,0,15,5,2")
    assert [row for row in rows if row.startswith("white.tif,0,no_tissue")]


def test_the_real_slide_at_20x(tmp_path) -> None:
    out = tmp_path / "out"
    assert patches("--slides", SVS, "--out", out, "--target-mpp", 0.5) == 0
    with h5py.File(out / "patches" / "cmu-1-small-region.h5") as file:
        attributes = dict(file["coords"].attrs)
        assert len(file["coords"]) > 30
    assert attributes["patch_level"] == 0  # 0.499 um per px is 0.5 to 0.2%
    assert attributes["patch_size_level0"] * attributes["level0_mpp"] == pytest.approx(256 * 0.5, rel=0.01)
    assert patches("--slides", SVS, "--out", out, "--target-magnification", 5) == 0
    with h5py.File(out / "patches" / "cmu-1-small-region.h5") as file:
        assert "patch_level" not in file["coords"].attrs
        assert file["coords"].attrs["patch_size_level0"] * 0.499 == pytest.approx(256 * 2, rel=0.01)


@pytest.mark.shared
def test_the_slide_without_resolution(tmp_path, capsys) -> None:
    if not TCGA.exists():
        pytest.skip("the shared data are not beside the checkout")
    assert patches("--slides", TCGA, "--out", tmp_path) == 1
    assert "mpp-x missing, mpp-y missing, objective-power missing" in capsys.readouterr().err
    assert patches("--slides", TCGA, "--out", tmp_path, "--mpp", 0.5, "--preset", "tcga") == 0
    assert len(coords(tmp_path)[TCGA.stem]) > 100
    table = tmp_path / "mpp.csv"
    table.write_text(f"slide_id,mpp\n{TCGA.name},0.25\n")
    assert patches("--slides", TCGA, "--out", tmp_path, "--mpp-csv", table, "--target-mpp", 0.5) == 0
    with h5py.File(tmp_path / "patches" / f"{TCGA.stem}.h5") as file:
        assert file["coords"].attrs["level0_magnification"] == 40


def test_pictures_in_an_output_folder_among_the_slides_are_no_slides(slides) -> None:
    for out in (slides / "out", slides):
        for _ in range(2):
            assert patches("--slides", slides, "--out", out, "--pixels", "jpeg", *SMALL) == 0
        assert set(coords(out)) == {"s0", "s1", "s2", "s3"}
        shutil.rmtree(out / "masks")
        shutil.rmtree(out / "tiles")


def test_a_process_list_chooses_and_sets(slides, tmp_path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("slide_id,process,contour_fn\ns0.tif,1,four_pt_hard\ns1.tif,0,\ns2.tif,1,\n")
    out = tmp_path / "out"
    assert patches("--slides", slides, "--out", out, "--process-list", table, *SMALL) == 0
    assert patches("--slides", slides, "--out", tmp_path / "all", *SMALL) == 0
    listed, every = coords(out), coords(tmp_path / "all")
    assert set(listed) == {"s0", "s2"}
    assert len(listed["s0"]) < len(every["s0"])
    np.testing.assert_array_equal(listed["s2"], every["s2"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "tgca"], "did you mean 'tcga'"),
        (["--patch-size", 0], "--patch-size 0"),
        (["--overlap", 256], "--overlap 256: neighbours must lie at least 1 px apart"),
        (["--step", 0], "--step 0: neighbours"),
        (["--overlap", -1], "--overlap -1"),
        (["--target-mpp", -1], "makes no sense"),
        (["--set", "stresh=3"], "did you mean 'sthresh'"),
        (["--shard", "2/2"], "it must be i/n"),
        (["--workers", 0], "--workers 0"),
        (["--mpp-csv", "nowhere.csv"], "it cannot be read"),
        (["--process-list", "nowhere.csv"], "it cannot be read"),
    ],
)
def test_bad_arguments(tmp_path, capsys, arguments, message) -> None:
    assert patches("--slides", SVS, "--out", tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_killed_worker_is_one_slides_failure(slides, tmp_path) -> None:
    """Killed while it writes the pixels of some thousand small patches."""
    out = tmp_path / "out"
    shutil.copy(SVS, slides / "a_slow.svs")
    command = [sys.executable, "-m", "eval.patches", "--slides", str(slides), "--out", str(out), "--quiet"]
    command += ["--pixels", "tar", "--patch-size", "24", "--set", "a_t=0.05", "mthresh=5"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    state = out / "state" / "patches" / "a_slow.json"
    deadline = time.monotonic() + 60
    while not (state.exists() and json.loads(state.read_text())["status"] == "running"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "failed: a_slow: its process was ended by SIGKILL" in errors
    assert set(coords(out)) == {"s0", "s1", "s2", "s3"}
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    assert set(coords(out)) == {"a_slow", "s0", "s1", "s2", "s3"}
    assert not [path for path in out.rglob(".*") if path.name.endswith(".tmp")]


def test_help_has_examples(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert "Exit codes" in text


def test_a_file_that_cannot_be_written_costs_its_slide_only(slides, tmp_path, write_slide, draw_tissue) -> None:
    """A limit on the size of files stands for the full disk: HDF5 does not recover from either in the same process."""
    write_slide(slides / "large.tif", draw_tissue((1000, 1000), [(0, 0, 1000, 1000)]), mpp=0.5)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000));"
        "from eval.patching.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = ["--slides", slides, "--out", tmp_path / "out", "--pixels", "h5", "--no-overview", "--quiet", *SMALL]
    arguments = [sys.executable, "-c", code, *map(str, command)]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 1
    assert "5 slides: 4 done, 0 without tissue, 1 failed" in done.stdout, done.stderr
    assert "failed: large: " in done.stderr
    assert set(coords(tmp_path / "out")) == {"s0", "s1", "s2", "s3"}
    assert not list((tmp_path / "out").rglob(".*.tmp"))


def test_the_manifest_is_a_data_set_of_the_patches(slides, tmp_path, write_slide, draw_tissue) -> None:
    write_slide(slides / "white.tif", draw_tissue((300, 300), []))
    out = tmp_path / "out"
    assert patches("--slides", slides, "--out", out, *SMALL) == 3
    data = Slides(str(out / "slides.csv"), str(out))
    assert len(data) == sum(map(len, coords(out).values()))
    assert data.decode(0).shape == (3, 32, 32)


def test_reports_leave_out_the_outcomes_of_other_settings(slides, tmp_path) -> None:
    command = ("--slides", slides, "--out", tmp_path)
    assert patches(*command, *SMALL) == 0
    assert patches(*command, *SMALL, "--overlap", 8, "--shard", "0/2") == 0
    totals = json.loads((tmp_path / "patches_summary.json").read_text())["totals"]
    assert (totals["slides"], totals["done"], totals["not_begun"]) == (4, 2, 2)
    rows = (tmp_path / "process_list_autogen.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1:3] for row in rows] == [["0", "processed"], ["1", "tbp"]] * 2


@pytest.mark.parametrize("change", ["sthresh", "sthresh=", "a_t=inf", "a_t=nan", "close=inf", "mthresh=1e300"])
def test_changes_of_the_preset_without_a_usable_value(slides, tmp_path, capsys, change) -> None:
    assert patches("--slides", slides, "--out", tmp_path / "out", "--set", change) == 2
    assert "--set" in capsys.readouterr().err
