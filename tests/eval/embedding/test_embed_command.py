"""`python -m eval.embed`: features against the encoder on pixels read by hand, reruns, shards, and bad slides."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from dinov2.slides import open_slide
from eval.embedding import cli as cli_module
from eval.embedding import loader as loader_module
from eval.embedding.cli import main
from eval.embedding.devices import resolve_devices
from eval.encoders import ColorStats, make_encoder
from eval.errors import EvalError
from eval.patching.cli import main as patch_main
from eval.patching.local_copy import shared_copy

SMALL = ("--patch-size", 32, "--set", "a_t=0.05", "mthresh=5")


def embed(*arguments: object) -> int:
    return main([*map(str, arguments), "--quiet", "--device", "cpu"])


@pytest.fixture
def slides(tmp_path, write_slide, draw_tissue) -> Path:
    for i in range(3):
        image = draw_tissue((400, 300), [(20 + 10 * i, 30, 300, 200 + 20 * i)])
        write_slide(tmp_path / "slides" / f"s{i}.tif", image, mpp=0.5)
    return tmp_path / "slides"


@pytest.fixture
def patched(slides, tmp_path) -> Path:
    command = ["--slides", slides, "--out", tmp_path / "patched", "--pixels", "h5", *SMALL, "--quiet"]
    assert patch_main([*map(str, command)]) == 0
    return tmp_path / "patched"


def features(out: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted((out / "h5_files").glob("*.h5")):
        with h5py.File(path) as file:
            found[path.stem] = file["features"][()]
    return found


def by_hand(slides: Path, patched: Path, name: str) -> np.ndarray:
    with h5py.File(patched / "patches" / f"{name}.h5") as file, open_slide(slides / f"{name}.tif") as slide:
        images = [slide.read_region((int(x), int(y)), 0, (32, 32)) for x, y in file["coords"]]
    return ColorStats().embed(np.stack(images))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("source", ["slides and coords", "coords", "patches", "slides"])
def test_features_are_the_encoders(slides, patched, tmp_path, workers, source) -> None:
    out = tmp_path / "features"
    given = {
        "slides and coords": ("--slides", slides, "--coords", patched),
        "coords": ("--coords", patched),
        "patches": ("--patches", patched),
        "slides": ("--slides", slides, *SMALL),
    }[source]
    assert embed("--encoder", "color-stats", *given, "--out", out, "--batch-size", 7, "--workers", workers) == 0
    found = features(out)
    assert set(found) == {"s0", "s1", "s2"}
    for name, array in found.items():
        np.testing.assert_array_equal(array, by_hand(slides, patched, name))
        np.testing.assert_array_equal(torch.load(out / "pt_files" / f"{name}.pt", weights_only=True).numpy(), array)
        with h5py.File(patched / "patches" / f"{name}.h5") as a, h5py.File(out / "h5_files" / f"{name}.h5") as b:
            np.testing.assert_array_equal(a["coords"][()], b["coords"][()])
            assert b["coords"].attrs["patch_size"] == 32
            assert b["features"].dtype == np.float32
            assert json.loads(b["features"].attrs["encoder"])["weights_hash"] == "color-stats-1"


def test_reruns_do_what_is_missing_or_changed(slides, patched, tmp_path, monkeypatch) -> None:
    out = tmp_path / "features"
    command = ("--encoder", "color-stats", "--slides", slides, "--coords", patched, "--out", out, "--workers", 0)
    assert embed(*command) == 0

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (out / "h5_files").iterdir()}

    first = times()
    assert embed(*command) == 0
    assert times() == first
    (out / "h5_files" / "s1.h5").unlink()
    assert embed(*command) == 0
    assert [name for name, time in times().items() if time != first[name]] == ["s1.h5"]
    second = times()
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    assert embed(*command[2:], "--encoder", CONVOLUTION, "--batch-size", 32) == 0
    assert all(time != second[name] for name, time in times().items())
    assert {array.shape[1] for array in features(out).values()} == {4 * 8 * 8}


def test_shards_and_their_summary(slides, patched, tmp_path) -> None:
    for i in range(2):
        arguments = ("--encoder", "color-stats", "--coords", patched, "--out", tmp_path / "f", "--shard", f"{i}/2")
        assert embed(*arguments, "--workers", 0) == 0
    assert set(features(tmp_path / "f")) == {"s0", "s1", "s2"}
    totals = json.loads((tmp_path / "f" / "embed_summary.json").read_text())["totals"]
    assert (totals["slides"], totals["done"]) == (3, 3)


@pytest.mark.slow
def test_several_devices_divide_the_slides(patched, tmp_path) -> None:
    arguments = ("--encoder", "color-stats", "--coords", patched, "--out", tmp_path, "--workers", 0, "--quiet")
    assert main([*map(str, arguments), "--device", "cpu", "cpu"]) == 0
    assert set(features(tmp_path)) == {"s0", "s1", "s2"}


def test_bad_slides_fail_alone(slides, patched, tmp_path, capsys, write_slide, draw_tissue) -> None:
    write_slide(slides / "s1.tif", draw_tissue((200, 100), [(0, 0, 100, 50)]))  # another slide of the same name
    write_slide(slides / "new.tif", draw_tissue((400, 300), [(20, 20, 200, 200)]))
    (patched / "state" / "patches" / "white.json").write_text(
        json.dumps({"name": "white", "slide": "", "key": "", "status": "empty"})
    )
    write_slide(slides / "white.tif", draw_tissue((400, 300), []))
    data = bytearray((slides / "s2.tif").read_bytes())
    data[5000:40000] = bytes(35000)
    (slides / "s2.tif").write_bytes(data)
    command = ("--encoder", "color-stats", "--slides", slides, "--coords", patched, "--out", tmp_path / "f")
    assert embed(*command, "--workers", 1) == 1
    printed = capsys.readouterr()
    assert "failed: s1: coordinates of s1 were made for a slide of 400 x 300 px" in printed.err
    assert "failed: new: no coordinates of slide new" in printed.err
    assert "failed: s2: " in printed.err
    assert "cannot be decoded" in printed.err
    assert "empty: white: no tissue" in printed.err
    assert set(features(tmp_path / "f")) == {"s0"}
    assert not (tmp_path / "f" / "pt_files" / "s2.pt").exists()


def test_a_slide_that_could_not_be_patched_says_why(tmp_path, capsys, write_slide, draw_tissue) -> None:
    write_slide(tmp_path / "slides" / "a.tif", draw_tissue((400, 300), [(20, 20, 300, 200)]), mpp=None)
    arguments = ("--encoder", "color-stats", "--slides", tmp_path / "slides", "--out", tmp_path / "out", *SMALL)
    assert embed(*arguments, "--workers", 0) == 1
    assert "failed: a: patching failed: " in capsys.readouterr().err
    assert embed(*arguments, "--workers", 0, "--mpp", 0.5) == 0
    assert set(features(tmp_path / "out")) == {"a"}


class Broken(ColorStats):
    """An encoder that gives NaN for the slide of a colour it does not like."""

    name = "broken"

    def embed(self, images):
        return np.full((len(images), 2), np.nan, np.float32)


def broken() -> Broken:
    return Broken()


def test_nan_is_an_error_and_not_written(patched, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    arguments = ("--encoder", "factory:test_embed_command:broken", "--coords", patched, "--out", tmp_path / "f")
    assert embed(*arguments, "--workers", 0) == 1
    assert "NaN or infinite embedding of patch" in capsys.readouterr().err
    assert features(tmp_path / "f") == {}


def kill_at_s1(source, indices, slides, cache_dir):
    if source.name == "s1":
        os.kill(os.getpid(), signal.SIGKILL)
    return read_patches(source, indices, slides, cache_dir)


read_patches = loader_module.read_patches


def test_a_killed_reader_costs_one_slide(patched, tmp_path, capsys, monkeypatch) -> None:
    command = ("--encoder", "color-stats", "--coords", patched, "--out", tmp_path / "f", "--workers", 1)
    with monkeypatch.context() as patch:
        patch.setattr(loader_module, "read_patches", kill_at_s1)
        assert embed(*command) == 1
    assert "failed: s1: a reading process died" in capsys.readouterr().err
    assert set(features(tmp_path / "f")) == {"s0", "s2"}
    assert embed(*command) == 0
    assert set(features(tmp_path / "f")) == {"s0", "s1", "s2"}


class Slow(ColorStats):
    """An encoder during whose work another process kills the readers."""

    def embed(self, images):
        children = multiprocessing.active_children()
        if children and not killed:
            killed.extend(child.pid for child in children)
            for child in children:
                subprocess.run(["kill", "-9", str(child.pid)], check=True)
            time.sleep(0.5)
        return super().embed(images)


killed: list[int] = []


def test_readers_killed_while_the_encoder_works_are_replaced(slides, patched, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cli_module, "make_encoder", lambda *_, **__: Slow())
    before = signal.getsignal(signal.SIGCHLD)
    arguments = ("--encoder", "slow", "--coords", patched, "--out", tmp_path / "f", "--batch-size", 4, "--workers", 2)
    assert embed(*arguments) == 0
    assert len(killed) == 2
    for name, array in features(tmp_path / "f").items():
        np.testing.assert_array_equal(array, by_hand(slides, patched, name))
    if callable(before):
        assert signal.getsignal(signal.SIGCHLD) is before


class Choosy(ColorStats):
    """An encoder that fails at its second call."""

    def __init__(self, error: Exception) -> None:
        self.error, self.calls = error, 0

    def embed(self, images):
        self.calls += 1
        if self.calls == 2:
            raise self.error
        return super().embed(images)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "Use a smaller --batch-size than 64"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
    ],
)
def test_an_encoders_error_costs_one_slide(patched, tmp_path, capsys, monkeypatch, error, message) -> None:
    monkeypatch.setattr(cli_module, "make_encoder", lambda *_, **__: Choosy(error))
    assert embed("--encoder", "x", "--coords", patched, "--out", tmp_path / "f", "--workers", 0) == 1
    assert message in capsys.readouterr().err
    assert len(features(tmp_path / "f")) == 2


def test_full_shared_memory_is_an_error_of_the_slide(patched, tmp_path, capsys, monkeypatch) -> None:
    def full(self):
        raise RuntimeError("unable to write to file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    assert embed("--encoder", "color-stats", "--coords", patched, "--out", tmp_path / "f", "--workers", 1) == 1
    assert "does not fit into shared memory: unable to write" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["h5", "pt"])
def test_features_that_cannot_be_written(patched, tmp_path, capsys, monkeypatch, kind) -> None:
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    command = ("--encoder", "color-stats", "--coords", patched, "--out", tmp_path / "f", "--workers", 0)
    assert embed(*command, "--formats", kind) == 1
    assert capsys.readouterr().err.count("No space left on device") == 3
    assert not list((tmp_path / "f" / f"{kind}_files").iterdir())


def test_damaged_pixels_cost_one_slide(patched, tmp_path, capsys) -> None:
    path = patched / "patches" / "s1.h5"
    with h5py.File(path, "r+") as file:
        del file["coords"]
        file.create_group("coords")
    assert embed("--encoder", "color-stats", "--patches", patched, "--out", tmp_path / "f", "--workers", 0) == 1
    assert "failed: s1: " in capsys.readouterr().err
    assert set(features(tmp_path / "f")) == {"s0", "s2"}


@pytest.mark.parametrize("option", ["--coords", "--patches"])
def test_slides_that_patching_failed_at_are_not_lost(slides, patched, tmp_path, capsys, option) -> None:
    for name, status in (("white", "empty"), ("cut", "failed")):
        state = {"name": name, "slide": str(slides / name), "key": "", "status": status, "reason": "the reason"}
        (patched / "state" / "patches" / f"{name}.json").write_text(json.dumps(state))
    command = ("--encoder", "color-stats", option, patched, "--out", tmp_path / "f", "--workers", 0)
    assert embed(*command) == 1
    printed = capsys.readouterr().err
    assert "empty: white: no tissue" in printed
    assert "failed: cut: patching failed: the reason" in printed
    (patched / "state" / "patches" / "cut.json").unlink()
    assert embed(*command[:2], option, patched / "patches", *command[4:]) == 3


def test_the_summary_leaves_out_other_encoders(patched, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    command = ("--coords", patched, "--out", tmp_path, "--workers", 0)
    assert embed("--encoder", "color-stats", *command) == 0
    assert embed("--encoder", CONVOLUTION, *command, "--shard", "0/3") == 0
    assert json.loads((tmp_path / "embed_summary.json").read_text())["totals"]["done"] == 1


def test_a_copy_of_a_slide_that_was_replaced_is_not_used(tmp_path) -> None:
    slide, cache = tmp_path / "a.tif", tmp_path / "cache"
    slide.write_bytes(b"old")
    assert shared_copy(slide, cache).read_bytes() == b"old"
    slide.write_bytes(b"newer")
    assert shared_copy(slide, cache).read_bytes() == b"newer"


def test_batches_can_be_pinned() -> None:
    assert callable(loader_module.Batch.pin_memory)  # how the DataLoader finds out
    failed = loader_module.Batch(0, np.arange(1), None, True, "why")
    assert failed.pin_memory() is failed


def test_a_local_copy_gives_the_same(slides, patched, tmp_path) -> None:
    for name, more in (("plain", ()), ("cached", ("--cache-dir", tmp_path / "cache"))):
        arguments = ("--encoder", "color-stats", "--slides", slides, "--coords", patched, "--out", tmp_path / name)
        assert embed(*arguments, *more, "--workers", 2, "--batch-size", 8) == 0
    for name, array in features(tmp_path / "plain").items():
        np.testing.assert_array_equal(features(tmp_path / "cached")[name], array)
    assert list((tmp_path / "cache").iterdir()) == []


def convolution():
    """A small network and its transform."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 5, 3), nn.GELU(), nn.Conv2d(8, 4, 3), nn.Flatten())
    return model, lambda image: torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


CONVOLUTION = "factory:test_embed_command:convolution"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_is_near(patched, tmp_path, monkeypatch, precision) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    for name in ("fp32", precision):
        arguments = ("--encoder", CONVOLUTION, "--coords", patched, "--out", tmp_path / name, "--workers", 0)
        assert embed(*arguments, "--precision", name, "--shard", "0/3") == 0
    a, b = (features(tmp_path / name)["s0"] for name in ("fp32", precision))
    assert b.dtype == np.float32
    assert 0 < np.abs(a - b).max() < 0.02
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.999


def test_pooling_reaches_the_encoder(slides, tmp_path) -> None:
    few = ("--slides", slides / "s0.tif", "--step", 150, *SMALL)
    arguments = ("--encoder", "random:vit12_tiny", "--pooling", "mean", "--out", tmp_path, "--workers", 0)
    assert embed(*arguments, *few) == 0
    with h5py.File(tmp_path / "patches" / "s0.h5") as file, open_slide(slides / "s0.tif") as slide:
        images = [slide.read_region((int(x), int(y)), 0, (32, 32)) for x, y in file["coords"]]
    expected = make_encoder("random:vit12_tiny", pooling="mean").embed(np.stack(images))
    np.testing.assert_allclose(features(tmp_path)["s0"], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to embed"),
        (["--coords", "nowhere"], "no such folder"),
        (["--patches", "."], "no .h5 file"),
        (["--patches", ".", "--coords", "."], "leave out --slides and --coords"),
        (["--slides", "nowhere"], "no such file or folder"),
        (["--coords", ".", "--checkpoint", "x"], "give one encoder"),
        (["--coords", ".", "--batch-size", "0"], "--batch-size 0"),
        (["--coords", ".", "--preset", "tcga", "--target-mpp", "1"], "--preset, --target-mpp: the patches are those"),
        (["--patches", ".", "--mpp", "1"], "--mpp: the patches are those of --patches"),
    ],
)
def test_bad_arguments(tmp_path, capsys, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    assert embed("--encoder", "color-stats", "--out", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err


def test_coordinates_that_do_not_name_their_slide(patched, tmp_path, capsys) -> None:
    for path in (patched / "patches").glob("*.h5"):
        with h5py.File(path, "r+") as file:
            file["coords"].attrs["slide"] = ""
    shutil.rmtree(patched / "state")
    assert embed("--encoder", "color-stats", "--coords", patched, "--out", tmp_path / "f") == 1
    assert "does not say where its slide is. Give --slides" in capsys.readouterr().err


def test_devices() -> None:
    assert resolve_devices(["cpu"]) == ["cpu"]
    for name, message in (("gpu", "must be auto, cpu"), ("cuda:x", "must be auto"), ("cuda:99", "CUDA devices here")):
        with pytest.raises(EvalError, match=message):
            resolve_devices([name])
