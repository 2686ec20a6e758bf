"""The picture of a data set, and what the command says about it."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2.data.collate import MultiCropBatch, MultiCropCollator
from dinov2.data.datasets import Folder
from dinov2.data.inspect import main
from dinov2.data.inspect_picture import CAPTION, GAP, SHADE, draw_grid
from dinov2.data.samples import SampleStream
from dinov2.utils.schema import CropsSection

SMALL = "crops: {global_crops_size: 32, local_crops_size: 16, local_crops_number: 3}\nstudent: {patch_size: 16}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(SMALL)
    return path


def test_the_picture_holds_crops_and_masks_where_they_belong(tiles: Path, small_crops: CropsSection) -> None:
    stream = SampleStream(Folder(str(tiles)), small_crops, 0)
    samples = [stream[0], stream[1]]
    batch = MultiCropCollator(small_crops, 0, 2, (4, 4), 1.0, (0.3, 0.6))(samples)
    assert isinstance(batch, MultiCropBatch)
    picture = torch.from_numpy(np.array(draw_grid(samples, batch, small_crops, (4, 4)))).permute(2, 0, 1)
    mean, std = (torch.tensor(v)[:, None, None] for v in (small_crops.normalize.mean, small_crops.normalize.std))
    top = CAPTION + 32 + GAP  # of the second tile
    second = (batch.global_crops[3] * std + mean) * 255  # its second global crop
    left = 2 * (32 + GAP)
    dark = batch.masks[3].view(4, 4).repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert 0 < int(dark.sum()) < dark.numel()
    expected = torch.where(dark, second * SHADE, second)
    assert float((picture[:, top : top + 32, left : left + 32] - expected).abs().max()) <= 1
    local = (batch.local_crops[1 * 2 + 1] * std + mean) * 255  # its second local crop, beside the first: 1 a column
    left = 3 * (32 + GAP) + (16 + GAP)
    assert float((picture[:, top : top + 16, left : left + 16] - local).abs().max()) <= 1


def test_the_command_counts_and_draws(
    tiles: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], truncate: Callable[[Path], None]
) -> None:
    truncate(tiles / "tile_003.png")
    out = tmp_path / "new" / "grid.png"
    arguments = [f"Folder:root={tiles}", "--config", str(config), "--out", str(out), "--n", "2"]
    assert main([*arguments, "crops.local_crops_number=0"]) == 0
    said = capsys.readouterr().out
    for text in ("20 tiles\n", "19 of 64 x 64 px", "1 of them cannot be decoded", "tile_003.png", "tiles/s"):
        assert text in said
    with Image.open(out) as picture:
        assert picture.size == (3 * 32 + 2 * GAP, CAPTION + 2 * (32 + GAP))


def test_speed_is_that_of_tiles_not_read_before(
    tiles: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    decode = Folder.decode
    monkeypatch.setattr(Folder, "decode", lambda self, index: (read.append(index), decode(self, index))[1])
    command = [f"Folder:root={tiles}", "--config", str(config), "--out", str(tmp_path / "grid.png"), "--n", "2"]
    assert main([*command, "--sample", "6"]) == 0  # 6 surveyed, 2 of them drawn, 6 decoded, 6 finished
    assert len(read) == 20
    assert len(set(read)) == 18
    assert "were read before" not in capsys.readouterr().out
    assert main([*command, "--sample", "8"]) == 0
    assert "4 of 16 tiles were read before, so from memory" in capsys.readouterr().out


def test_parts_of_a_mixture_are_said(
    tiles: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tiles / "few").mkdir()
    for number in range(5):
        (tiles / f"tile_{number:03d}.png").rename(tiles / "few" / f"{number}.png")
    (tmp_path / "in.yaml").write_text(f"datasets: [{{spec: 'Folder:{tiles}', weight: 1}}]")
    (tmp_path / "mix.yaml").write_text(
        f"datasets: [{{spec: 'Mix:{tmp_path}/in.yaml', weight: 3}}, {{spec: 'Folder:{tiles}/few', weight: 1}}]"
    )
    assert main([f"Mix:{tmp_path}/mix.yaml", "--config", str(config), "--out", str(tmp_path / "grid.png")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:4] == [
        "25 tiles",
        f"  20 tiles, 75.00% of the samples: such as {tiles}/few/0.png",
        f"    20 tiles, 100.00% of the samples: such as {tiles}/few/0.png",
        f"  5 tiles, 25.00% of the samples: such as {tiles}/few/0.png",
    ]


def test_bad_input_is_one_line(tiles: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, out = f"Folder:root={tiles}", str(tmp_path / "grid.png")
    for arguments, message in [
        ([dataset, "--config", str(config), "--out", out, "--n", "0"], "--n 0"),
        (["Folder:root=nowhere", "--config", str(config), "--out", str(tiles)], "is a folder; name the picture's file"),
        ([dataset, "--config", str(tmp_path / "none.yaml"), "--out", out], "does not exist"),
        (["Foldr:root=x", "--config", str(config), "--out", out], "did you mean 'Folder'"),
        ([dataset, "--config", str(config), "--out", out, "crops.jpg.p=1"], "crops.jpg"),
    ]:
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert message in err
    assert not Path(out).exists()


def test_nothing_readable_is_an_error(
    tiles: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], truncate: Callable[[Path], None]
) -> None:
    for path in tiles.iterdir():
        truncate(path)
    assert main([f"Folder:root={tiles}", "--config", str(config), "--out", str(tmp_path / "grid.png")]) == 2
    assert "no readable tile" in capsys.readouterr().err


def test_names_need_not_be_text(tiles: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(os.fsdecode(os.fsencode(tiles) + b"/tile_\xff.png")).write_bytes(b"")
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="utf-8", write_through=True))
    arguments = [f"Folder:root={tiles}", "--config", str(config), "--out", str(tmp_path / "x.png"), "--n", "21"]
    assert main(arguments) == 0
    assert b"tile_\\udcff.png" in out.getvalue()
