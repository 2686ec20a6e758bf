"""Packing: the tiles come back, interrupted runs go on, and what has changed is noticed."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from dinov2.data import pack as pack_module
from dinov2.data.datasets import Folder, make_dataset
from dinov2.data.pack import main, make_plan, pack
from dinov2.data.pack_manifest import Manifest, file_sha256
from dinov2.data.pack_tiles import member_name
from dinov2.utils import file_lock

WriteTiles = Callable[..., list[Path]]


def _pack(source: Path, out: Path, *options: str) -> int:
    return main([f"Folder:root={source}", "--out", str(out), *options])


def test_tar_shards_keep_the_files_as_they_are(tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _pack(tiles.parent, tmp_path / "out", "--shard-size", "8") == 0
    spec = capsys.readouterr().out.splitlines()[-1].strip()
    assert spec == f"Tar:shards={tmp_path}/out/shard-{{000000..000002}}.tar"
    packed, source = make_dataset(spec), Folder(str(tiles.parent))
    assert [packed.encoded(i) for i in range(len(packed))] == [source.encoded(i) for i in range(20)]  # type: ignore[attr-defined]
    assert packed.path(9).endswith("shard-000001.tar/tiles/000000009-tile_009.png")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        ".lock",
        "manifest.json",
        *(f"shard-00000{number}.tar" for number in range(3)),
    }


def test_h5_holds_the_pixels(tiles: Path, tmp_path: Path, truncate: Callable[[Path], None]) -> None:
    truncate(tiles / "tile_003.png")
    assert _pack(tiles, tmp_path / "out", "--format", "h5", "--shard-size", "12") == 0
    packed, source = make_dataset(f"H5:root={tmp_path}/out"), Folder(str(tiles))
    good = [i for i in range(20) if i != 3]
    assert len(packed) == 19
    assert all(torch.equal(packed.decode(k), source.decode(i)) for k, i in enumerate(good))
    with h5py.File(tmp_path / "out" / "shard-000000.h5") as file:
        assert file["img"].shape == (11, 64, 64, 3)
        assert file["name"].asstr()[3] == "000000004-tile_004"


def test_an_h5_shard_without_a_good_tile_does_no_harm(
    tiles: Path, tmp_path: Path, truncate: Callable[[Path], None]
) -> None:
    for number in range(16, 20):
        truncate(tiles / f"tile_{number:03d}.png")
    options = ("--format", "h5", "--shard-size", "8", "--max-bad-fraction", "0.3")
    assert _pack(tiles, tmp_path / "out", *options) == 0
    packed, source = make_dataset(f"H5:root={tmp_path}/out"), Folder(str(tiles))
    assert len(packed) == 16
    assert torch.equal(packed.decode(15), source.decode(15))
    assert main(["--out", str(tmp_path / "out"), "--verify"]) == 0
    with h5py.File(tmp_path / "out" / "shard-000002.h5") as file:
        assert len(file["img"]) == len(file["name"]) == 0


def test_h5_keeps_the_places_of_tiles(tmp_path: Path) -> None:
    places = np.arange(10).reshape(5, 2) * 100
    for name, content in (("a", {"coords": places}), ("b", {})):
        (tmp_path / name).mkdir()
        with h5py.File(tmp_path / name / f"{name}.h5", "w") as file:
            file["img"] = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
            for key, values in content.items():
                file[key] = values
        assert main([f"H5:root={tmp_path}/{name}", "--out", f"{tmp_path}/out-{name}", "--format", "h5"]) == 0
    with h5py.File(tmp_path / "out-a" / "shard-000000.h5") as file:
        np.testing.assert_array_equal(file["coords"][:], places)
    with h5py.File(tmp_path / "out-b" / "shard-000000.h5") as file:
        assert "coords" not in file


def test_h5_packed_as_tar_is_lossless(tiles: Path, tmp_path: Path) -> None:
    assert _pack(tiles, tmp_path / "h5", "--format", "h5") == 0
    assert main([f"H5:root={tmp_path}/h5", "--out", str(tmp_path / "tar")]) == 0
    packed = make_dataset(f"Tar:shards={tmp_path}/tar/shard-000000.tar")
    source = Folder(str(tiles))
    assert all(torch.equal(packed.decode(i), source.decode(i)) for i in range(20))
    assert packed.path(7).endswith("/shard-000000/000000007-000007.png")


def test_jpeg_is_encoded_anew(tiles: Path, tmp_path: Path) -> None:
    assert _pack(tiles, tmp_path / "out", "--jpeg-quality", "95") == 0
    packed, source = make_dataset(f"Tar:shards={tmp_path}/out/shard-000000.tar"), Folder(str(tiles))
    error = (packed.decode(0).float() - source.decode(0).float()).abs().mean()
    assert 0 < error < 4
    assert packed.encoded(0)[:3] == b"\xff\xd8\xff"  # type: ignore[attr-defined]


def test_workers_give_the_same_shards(tiles: Path, tmp_path: Path) -> None:
    sums = []
    for workers in ("0", "2"):
        out = tmp_path / workers
        assert _pack(tiles, out, "--shard-size", "8", "--workers", workers) == 0
        sums.append([file_sha256(out / f"shard-00000{number}.tar") for number in range(3)])
    assert sums[0] == sums[1]


def test_bad_tiles_are_left_out_and_listed(
    tiles: Path, tmp_path: Path, truncate: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    truncate(tiles / "tile_004.png")
    (tiles / "tile_009.png").write_bytes(b"")
    assert _pack(tiles, tmp_path / "out") == 2
    assert "2 tiles cannot be decoded" in capsys.readouterr().err
    assert _pack(tiles, tmp_path / "out", "--max-bad-fraction", "0.2") == 0
    assert "18 tiles in 1 shards" in (out := capsys.readouterr().out)
    assert "2 bad tiles left out" in out
    (record,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["shards"].values()
    assert [path for path, _ in record["bad"]] == [str(tiles / "tile_004.png"), str(tiles / "tile_009.png")]


def test_complete_shards_are_kept(tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    plan = make_plan("x", dataset := Folder(str(tiles)), shard_size=6)
    write, written = pack_module._write_shard, []

    def interrupt(plan: object, number: int, *rest: object) -> object:
        written.append(number)
        if number == 2 and len(written) == 3:
            raise KeyboardInterrupt
        return write(plan, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pack_module, "_write_shard", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack(dataset, plan, out)
    manifest = Manifest.load(out)
    assert manifest is not None
    assert list(manifest.shards) == ["shard-000000.tar", "shard-000001.tar"]
    (out / ".shard-000002.tar.77.tmp").write_bytes(b"left by a run that was killed")
    assert pack(dataset, plan, out).complete
    assert written == [0, 1, 2, 2, 3]
    assert [path.name for path in out.glob(".*")] == [".lock"]
    (out / "shard-000001.tar").write_bytes(b"short")
    assert pack(dataset, plan, out).faults(out) == []
    assert written[5:] == [1]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_run_is_continued(tiles: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "dinov2.data.pack", f"Folder:root={tiles}", "--out", str(out), "--shard-size", "1"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.getcwd()})
    while not (out / "shard-000003.tar").exists():
        assert process.poll() is None
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    manifest = Manifest.load(out)
    assert manifest is not None
    before = {name: (out / name).stat().st_mtime_ns for name in manifest.shards}
    assert before
    assert _pack(tiles, out, "--shard-size", "1") == 0
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert main(["--out", str(out), "--verify"]) == 0


def test_verify_names_what_has_changed(tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    _pack(tiles, out, "--shard-size", "5")
    assert main(["--out", str(out), "--verify"]) == 0
    assert "all 4 shards are as they were packed" in capsys.readouterr().out
    content = bytearray((out / "shard-000001.tar").read_bytes())
    content[700] ^= 1
    (out / "shard-000001.tar").write_bytes(content)
    (out / "shard-000002.tar").write_bytes(content[:-512])
    (out / "shard-000003.tar").unlink()
    assert main(["--out", str(out), "--verify"]) == 1
    found = capsys.readouterr().out
    for words in ("shard-000001.tar: its SHA-256", "shard-000002.tar: ", "shard-000003.tar: missing", "NOT as packed"):
        assert words in found


def test_tiles_of_several_sizes(tmp_path: Path, write_tiles: WriteTiles, capsys: pytest.CaptureFixture[str]) -> None:
    for name, size in (("a.png", (8, 8)), ("b.png", (8, 9))):
        Image.new("RGB", size).save(tmp_path / name)
    assert _pack(tmp_path, tmp_path / "h5", "--format", "h5") == 2
    assert "b.png is 8 x 9 px, tiles before it are 8 x 8" in capsys.readouterr().err
    assert _pack(tmp_path, tmp_path / "tar") == 0


def test_another_plan_needs_another_folder(tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _pack(tiles, tmp_path / "out", "--shard-size", "5")
    assert _pack(tiles, tmp_path / "out", "--shard-size", "6") == 2
    assert "is packed differently: shard_size 5 and 6; give another --out" in capsys.readouterr().err
    assert main([f"Folder:{tiles}", "--out", str(tmp_path / "out"), "--shard-size", "5"]) == 0  # spelt otherwise
    (tiles / "tile_000.png").unlink()
    assert _pack(tiles, tmp_path / "out", "--shard-size", "5") == 2
    assert "tiles 20 and 19" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard-size", "0"], "--shard-size 0 must be at least 1"),
        (["--jpeg-quality", "101"], "--jpeg-quality 101 must be 1 to 100"),
        (["--jpeg-quality", "90", "--format", "h5"], "does not go with --format h5"),
        (["--workers", "-1"], "--workers -1 must not be negative"),
        (["--max-bad-fraction", "nan"], "--max-bad-fraction nan must be 0 to 1"),
        (["--verify"], r"manifest.json does not exist"),
    ],
)
def test_wrong_options(
    tiles: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _pack(tiles, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err


def test_wrong_folders(tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert _pack(tiles, tmp_path / "file") == 2
    assert "file cannot be written" in capsys.readouterr().err
    (tmp_path / "manifest.json").write_text("{")
    assert _pack(tiles, tmp_path) == 2
    assert "is no manifest of packed data" in capsys.readouterr().err
    assert main(["--out", str(tmp_path)]) == 2
    assert "no data set given" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("", "000000007.png"),
        ("a/b.jpg", "a/000000007-b.png"),
        ("TCGA.v1/x.1.2.tif", "TCGA.v1/000000007-x_1_2.png"),
    ],
)
def test_member_names(name: str, packed: str) -> None:
    assert member_name(7, name, ".png") == packed


@pytest.mark.parametrize("name", ["../x.png", "/x.png", "a/../../x.png"])
def test_names_that_lead_out_are_refused(
    tiles: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Folder, "name", lambda self, index: name)
    assert _pack(tiles, tmp_path / "out") == 2
    assert "names must be relative and without '..'" in capsys.readouterr().err


def test_shards_are_archives_that_tar_reads(tiles: Path, tmp_path: Path) -> None:
    _pack(tiles, tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as archive:
        assert len(archive.getnames()) == 20
        assert {member.mtime for member in archive} == {0}


@pytest.mark.parametrize("shard_format", [pytest.param("tar", marks=pytest.mark.slow), "h5"])
def test_a_full_disk_is_an_error_and_the_run_goes_on(tiles: Path, tmp_path: Path, shard_format: str) -> None:
    options = [f"Folder:root={tiles}", "--out", str(tmp_path / "out"), "--format", shard_format]
    script = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY)); "
    script += f"from dinov2.data.pack import main; raise SystemExit(main({options!r}))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=os.getcwd())
    assert run.returncode == 2, run.stderr
    assert f"shard-000000.{shard_format} cannot be written: [Errno 27] File too large" in run.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    assert main(options) == 0


def test_two_runs_in_one_folder(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(file_lock, "PATIENCE_SECONDS", 0.0)
    out = tmp_path / "out"
    descriptor, _ = file_lock.acquire_lock(out / ".lock")
    assert descriptor is not None
    (out / ".shard-000000.tar.77.tmp").write_bytes(b"of the run that has the lock")
    assert _pack(tiles, out) == 2
    assert f"is being packed by another process (process {os.getpid()} on " in capsys.readouterr().err
    assert (out / ".shard-000000.tar.77.tmp").exists()
    os.close(descriptor)
    assert _pack(tiles, out) == 0
    assert {path.name for path in out.iterdir()} == {".lock", "manifest.json", "shard-000000.tar"}
