"""Finding slides, shards, tables of slides, process lists, and the state of each slide."""

import csv
import json

import pytest

from eval.errors import EvalError
from eval.patching.local_copy import local_copy
from eval.patching.presets import Preset, load_preset
from eval.patching.process_list import COLUMNS, read_process_list, write_process_list
from eval.patching.slides import Shard, find_slides, read_mpps, take_shard
from eval.patching.state import SlideState, fingerprint, job_key, read_state, read_states, state_path, write_state
from eval.patching.summary import exit_code, write_summary


@pytest.fixture
def folder(tmp_path):
    for name in ("b.svs", "deep/er/a.TIFF", "c.ome.tif", "notes.txt", ".hidden.svs", ".trash/d.svs"):
        (tmp_path / "slides" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "slides" / name).write_bytes(b"")
    return tmp_path / "slides"


def test_slides_are_found_at_any_depth_by_name(folder) -> None:
    assert [path.name for path in find_slides([folder])] == ["a.TIFF", "b.svs", "c.ome.tif"]
    assert find_slides([folder / "b.svs", folder]) == find_slides([folder])


def test_two_slides_of_one_name(folder) -> None:
    (folder / "deep" / "b.ndpi").write_bytes(b"")
    with pytest.raises(EvalError, match=r"b\.svs and .*b\.ndpi would both be written as b\.|b\.ndpi and .*b\.svs"):
        find_slides([folder])


def test_folders_without_slides(tmp_path) -> None:
    with pytest.raises(EvalError, match=r"no slide in this folder; looked for \.svs"):
        find_slides([tmp_path])
    with pytest.raises(EvalError, match="no such file or folder"):
        find_slides([tmp_path / "nowhere"])


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_divide_the_slides(folder, count) -> None:
    slides = find_slides([folder])
    parts = [take_shard(slides, Shard(i, count)) for i in range(count)]
    assert sorted(path for part in parts for path in part) == sorted(slides)


@pytest.mark.parametrize("text", ["4/4", "1", "a/b", "-1/2", "0/0", "1/2/3"])
def test_bad_shards(text) -> None:
    with pytest.raises(EvalError, match="it must be i/n"):
        Shard.parse(text)


@pytest.mark.parametrize("column", ["slide_id", "wsi", "slide"])
def test_pixel_sizes_from_a_csv(folder, tmp_path, column) -> None:
    slides = {"a": folder / "deep/er/a.TIFF", "b": folder / "b.svs"}
    table = tmp_path / "mpp.csv"
    table.write_text(f"{column},mpp\na.TIFF,0.25\nb,0.5\nother.svs,0.1\n")
    assert read_mpps(table, slides) == {"a": 0.25, "b": 0.5}
    for text, message in (
        ("slide_id,mpp\na,zero\n", "line 2: mpp = 'zero'; it must be a positive number"),
        ("slide_id,mp\na,1\n", "needs a column mpp"),
        ("name,mpp\na,1\n", "needs a column slide_id.*it has name, mpp"),
        ("", "it has no rows"),
        ("slide_id,mpp\n,1\n", "line 2: no slide"),
    ):
        table.write_text(text)
        with pytest.raises(EvalError, match=message):
            read_mpps(table, slides)


def test_process_lists_are_read_as_clam_writes_them(folder, tmp_path) -> None:
    slides = {"a": folder / "a.tiff", "b": folder / "b.svs", "c": folder / "c.ome.tif"}
    table = tmp_path / "list.csv"
    table.write_text(
        "slide_id,process,status,sthresh,a_t,keep_ids,mpp\na.tiff,1,tbp,20,,none,\nb.svs,0,processed,,5.0,1,0.4\n"
    )
    listed = read_process_list(table, slides, load_preset("tcga"))
    assert set(listed) == {"a", "b"}
    assert (listed["a"].preset.sthresh, listed["a"].preset.a_t, listed["a"].process) == (20, 16, True)
    assert (listed["b"].preset.sthresh, listed["b"].preset.a_t, listed["b"].process) == (8, 5, False)
    assert (listed["b"].preset.keep_ids, listed["b"].mpp, listed["a"].mpp) == ((1,), 0.4, None)
    for text, message in (
        ("slide_id\nd.svs\n", "line 2: no slide is named 'd.svs'"),
        ("slide_id\na\na.tiff\n", "line 3: a is listed twice"),
        ("slide_id,sthresh\na,high\n", "line 2: sthresh = 'high'"),
        ("slide_id,colour\na,red\n", "no parameter is named 'colour'"),
    ):
        table.write_text(text)
        with pytest.raises(EvalError, match=message):
            read_process_list(table, slides, Preset())


def test_process_lists_are_written_as_clam_reads_them(folder, tmp_path) -> None:
    slides = {"a": folder / "a.tiff", "b": folder / "b.svs", "c": folder / "c.ome.tif"}
    presets = dict.fromkeys(slides, load_preset("biopsy"))
    done = SlideState("a", "", "", "done", details={"seg_level": 2})
    write_process_list(tmp_path / "out.csv", slides, presets, [done, SlideState("b", "", "", "failed")])
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert {"slide_id", "process", "status", "seg_level", "keep_ids", "line_thickness"} <= set(COLUMNS)
    found = [(row["slide_id"], row["process"], row["status"], row["seg_level"]) for row in rows]
    assert found == [("a.tiff", "0", "processed", "2"), ("b.svs", "1", "failed", "-1"), ("c.ome.tif", "1", "tbp", "-1")]
    again = read_process_list(tmp_path / "out.csv", slides, Preset())
    assert again["c"].preset == load_preset("biopsy")
    assert [again[name].process for name in "abc"] == [False, True, True]


def test_states_are_read_back(tmp_path, caplog) -> None:
    state = SlideState("a", "x/a.svs", "key", "failed", "why", 3, 1.5, 0, {"level": 1})
    write_state(state_path(tmp_path, "patches", "a"), state)
    assert read_state(state_path(tmp_path, "patches", "a")) == state
    assert read_state(state_path(tmp_path, "patches", "b")) is None
    for damage in ("", "{", "[]", '{"name": "b"}', '{"unknown": 1}'):
        state_path(tmp_path, "patches", "b").write_text(damage)
        assert read_state(state_path(tmp_path, "patches", "b")) is None
    assert "unreadable state" in caplog.text
    assert read_states(tmp_path, "patches") == [state]


def test_keys_follow_settings_and_content(tmp_path) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(bytes(3_000_000))
    first = fingerprint(path)
    assert fingerprint(path) == first
    path.write_bytes(bytes(3_000_001))
    assert fingerprint(path) != first
    path.write_bytes(b"\1" + bytes(2_999_999))
    assert fingerprint(path) != first
    path.write_bytes(bytes(2_999_999) + b"\1")
    assert fingerprint(path) != first
    assert len({job_key({"a": 1}, "x"), job_key({"a": 2}, "x"), job_key({"a": 1}, "y")}) == 3


def test_summaries_and_exit_codes(tmp_path) -> None:
    done = SlideState("a", "", "", "done", patches=1200, seconds=2)
    empty = SlideState("b", "", "", "empty", "no tissue")
    failed = SlideState("c", "", "", "failed", "cut | off\nhere", attempts=2)
    assert [exit_code(s) for s in ([], [done], [done, empty], [done, empty, failed])] == [0, 0, 3, 1]
    write_summary(tmp_path, "patches", [done, empty, failed], {"preset": "tcga"}, ["d"])
    content = json.loads((tmp_path / "patches_summary.json").read_text())
    assert content["totals"] == {
        "slides": 4, "running": 0, "done": 1, "empty": 1, "failed": 1, "not_begun": 1, "patches": 1200, "seconds": 2.0
    }  # fmt: skip
    text = (tmp_path / "patches_summary.md").read_text()
    assert "4 slides: 1 done, 1 without tissue, 1 failed, 1 not finished. 1,200 patches" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row.split("|")[1].strip() for row in rows] == ["c", "b", "a"]
    assert "cut \\| off here" in rows[0]


def test_linked_folders_are_followed_once_and_broken_links_are_kept(folder, tmp_path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.svs").write_bytes(b"")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "linked" / "back").symlink_to(folder)
    (folder / "lost.svs").symlink_to(tmp_path / "nowhere.svs")
    (folder / "self.svs").symlink_to(folder / "self.svs")
    names = ["a.TIFF", "b.svs", "c.ome.tif", "far.svs", "lost.svs", "self.svs"]
    assert [path.name for path in find_slides([folder])] == names


def test_parts_of_a_slide(tmp_path) -> None:
    (tmp_path / "a.vms").write_text("[Virtual Microscope Specimen]\nImageFile=a.jpg\nMapFile=a_map.jpg\nNoLayers=1\n")
    for name in ("a.jpg", "a_map.jpg", "other.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    assert [path.name for path in find_slides([tmp_path])] == ["a.vms", "other.jpg"]
    (tmp_path / "b.mrxs").write_bytes(b"table")
    (tmp_path / "b").mkdir()
    for slide, part in (("a.vms", "a_map.jpg"), ("b.mrxs", "b/Data0001.dat")):
        (tmp_path / part).write_bytes(b"data")
        before = fingerprint(tmp_path / slide)
        (tmp_path / part).write_bytes(b"other data")
        assert fingerprint(tmp_path / slide) != before
        with local_copy(tmp_path / slide, tmp_path / "cache") as copy:
            assert (copy.parent / part).read_bytes() == b"other data"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide_id,mpp\nc,0.5\nd.svs,0.25\n", r"no row gives the pixel size of one of the 2 slides \(a, b\)"),
        ("slide_id,mpp\na,0.5\nb,0.5\na.TIFF,0.25\n", r"line 4: a has 0.25 here and 0.5 above"),
    ],
)
def test_tables_of_pixel_sizes_that_help_nobody(folder, tmp_path, text, message) -> None:
    (tmp_path / "mpp.csv").write_text(text)
    with pytest.raises(EvalError, match=message):
        read_mpps(tmp_path / "mpp.csv", {"a": folder / "deep/er/a.TIFF", "b": folder / "b.svs"})


def test_cells_of_process(folder, tmp_path) -> None:
    table, slides = tmp_path / "list.csv", {"a": folder / "a.tiff"}
    table.write_text("slide_id,process\na,1.0\ngone.svs,0\n")
    assert set(read_process_list(table, slides, Preset())) == {"a"}
    for cell in ("yes", "2", "TRUE"):
        table.write_text(f"slide_id,process\na,{cell}\n")
        with pytest.raises(EvalError, match=f"line 2: process = '{cell}'; it must be 1"):
            read_process_list(table, slides, Preset())
