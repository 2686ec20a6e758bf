"""Later embedding jobs in one output folder, the order of work within one, and several at once."""

import errno
import json
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from eval.embedding import cli as cli_module
from eval.embedding.cli import main
from eval.embedding.options import EmbedOptions, SlideToEmbed
from eval.embedding.run import embed_slides
from eval.embedding.sources import stored_source
from eval.encoders import ColorStats
from eval.errors import EvalError
from eval.patching import summary as summary_module
from eval.patching.locks import alone
from eval.patching.state import lock_path, read_state, state_path

COUNT = 4


def write_patches(path: Path, seed: int, count: int = 5, dtype=np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["img"] = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3)).astype(dtype)
        file["coords"] = np.arange(2 * count).reshape(-1, 2)
        file["coords"].attrs.update({"patch_size": 8, "note": "a text"})


@pytest.fixture
def patches(tmp_path) -> Path:
    for i in range(COUNT):
        write_patches(tmp_path / "patches" / f"s{i}.h5", i)
    return tmp_path / "patches"


def embed(patches: Path, out: Path, *arguments: object) -> int:
    given = ("--patches", patches, "--out", out, "--device", "cpu", "--quiet", "--batch-size", 2, *arguments)
    return main([*map(str, given), *(() if "--encoder" in given else ("--encoder", "color-stats"))])


def times(out: Path) -> dict[str, int]:
    return {f"{p.parent.name}/{p.name}": p.stat().st_mtime_ns for p in out.glob("*_files/*")}


def test_a_format_is_added_without_touching_the_other(patches, tmp_path) -> None:
    out = tmp_path / "out"
    assert embed(patches, out, "--formats", "h5") == 0
    first = times(out)
    assert embed(patches, out) == 0
    assert {name: times(out)[name] for name in first} == first
    assert len(times(out)) == 2 * COUNT
    both = times(out)
    assert embed(patches, out, "--formats", "pt") == 0
    assert times(out) == both


class Other(ColorStats):
    """Another encoder, which is interrupted in the second slide."""

    settings = {"weights_hash": "other", "pooling": "none"}  # noqa: RUF012

    def __init__(self) -> None:
        self.calls = 0

    def embed(self, images):
        self.calls += 1
        if self.calls == 5:
            raise KeyboardInterrupt
        return super().embed(images)[:, :3]


def test_old_features_go_when_their_slide_begins(patches, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    assert embed(patches, out) == 0
    before = times(out)
    with monkeypatch.context() as patch:
        patch.setattr(cli_module, "make_encoder", lambda *_, **__: Other())
        assert embed(patches, out, "--encoder", "other") == 130
    after = times(out)
    assert sorted(before.keys() - after.keys()) == ["h5_files/s1.h5", "pt_files/s1.pt"]
    assert {name for name in after if after[name] != before[name]} == {"h5_files/s0.h5", "pt_files/s0.pt"}
    assert not list(out.rglob("*.lock"))
    assert embed(patches, out) == 0  # the first encoder again
    assert {name for name, time in times(out).items() if time == before[name]} == {
        f"{kind}_files/s{i}.{kind}" for kind in ("h5", "pt") for i in (2, 3)
    }


def test_slides_are_opened_as_work_gets_on(patches, tmp_path) -> None:
    opened: list[int] = []
    seen: list[int] = []

    class Watching(ColorStats):
        def embed(self, images):
            seen.append(len(opened))
            return super().embed(images)

    def opener(number: int):
        opened.append(number)
        return stored_source(f"s{number}", patches / f"s{number % COUNT}.h5")

    slides = [SlideToEmbed(f"s{i}", patches, partial(opener, i)) for i in range(40)]
    states = embed_slides(Watching(), slides, EmbedOptions(tmp_path / "out", batch_size=5), progress=False)
    assert [state.status for state in states] == ["done"] * 40
    assert opened == list(range(40))
    assert max(count - i for i, count in enumerate(seen)) <= 4 + 3  # ready, taken, waiting for room, and the next


def test_the_summary_of_a_shard_knows_all_slides(patches, tmp_path) -> None:
    assert embed(patches, tmp_path / "out", "--shard", "0/3") == 0
    content = json.loads((tmp_path / "out" / "embed_summary.json").read_text())
    assert (content["totals"]["slides"], content["totals"]["done"], content["not_begun"]) == (4, 2, ["s1", "s2"])


def test_pixels_that_are_not_of_8_bits(patches, tmp_path, capsys) -> None:
    write_patches(patches / "s1.h5", 1, dtype=np.float32)
    assert embed(patches, tmp_path / "out") == 1
    assert "its pixels are float32; encoders take uint8" in capsys.readouterr().err
    assert sorted(p.stem for p in (tmp_path / "out" / "h5_files").iterdir()) == ["s0", "s2", "s3"]


def test_texts_of_a_coordinate_file_are_not_read(patches, tmp_path) -> None:
    """HDF5 may hang where it reads a text of a damaged file."""
    assert embed(patches, tmp_path / "out") == 0
    with h5py.File(tmp_path / "out" / "h5_files" / "s2.h5") as file:
        assert dict(file["coords"].attrs) == {"name": "s2", "patch_size": 8}


def test_a_slide_that_could_not_be_opened_for_once_is_not_embedded_again(patches, tmp_path) -> None:
    out, unreadable = tmp_path / "out", [True]

    def opener():
        if unreadable:
            raise EvalError("the network is away")
        return stored_source("s0", patches / "s0.h5")

    def run() -> str:
        (state,) = embed_slides(ColorStats(), [SlideToEmbed("s0", patches, opener)], EmbedOptions(out), progress=False)
        return f"{state.status} {state.patches}"

    unreadable.clear()
    assert run() == "done 5"
    before = times(out)
    unreadable.append(True)
    assert run() == "failed 0"
    unreadable.clear()
    assert run() == "done 5"
    assert times(out) == before
    assert read_state(state_path(out, "embed", "s0")).status == "done"


def test_a_slide_at_which_another_process_is(patches, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("dinov2.utils.file_lock.PATIENCE_SECONDS", 0.0)
    out = tmp_path / "out"
    with alone(lock_path(out, "embed", "s1"), "slide s1"):
        assert embed(patches, out) == 1
    assert "running: s1: another process (process " in capsys.readouterr().err
    assert sorted(p.stem for p in (out / "h5_files").iterdir()) == ["s0", "s2", "s3"]
    assert read_state(state_path(out, "embed", "s1")) is None
    assert embed(patches, out) == 0


def test_a_summary_that_cannot_be_written_hides_no_outcome(patches, tmp_path, capsys, caplog, monkeypatch) -> None:
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_patches(patches / "s1.h5", 1, dtype=np.float32)
    monkeypatch.setattr(summary_module, "write_text", full)
    assert embed(patches, tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert "failed: s1: " in printed.err
    assert "4 slides: 3 embedded" in printed.out
    assert "the reports are not up to date: [Errno 28]" in caplog.text
