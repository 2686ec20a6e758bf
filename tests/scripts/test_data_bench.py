"""The benchmark of the input pipeline: it runs, compares with everyone, and refuses what it cannot measure."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"
MODULES = [path.stem for path in BENCH.glob("*.py")]


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The modules that are used here, imported as `python scripts/bench/data.py` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in ("common", "data", "data_peers")})
    for name in MODULES:  # their names are common words
        sys.modules.pop(name, None)


def test_everyone_is_measured_and_compared(bench: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    assert bench.common.run(bench.data.program, ["--quick", "--threads", "1", "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    peers = {bench.data.DINOV2, bench.data.V2}
    ours = {bench.data.WORKER, bench.data.SHARE, bench.data.DEVICE, "ours, loader, 1 workers"}
    assert all(row["images_per_s"] > 0 for row in content["rows"])
    assert {row["name"] for row in content["rows"]} >= peers | ours
    for name in (bench.data.WORKER, bench.data.SHARE):
        assert all(content["ratios"][f"{name} over {peer}"] > 0 for peer in peers)
    assert {"machine", "command"} <= set(content)


def test_lightly_train_is_measured_in_its_own_environment(bench: SimpleNamespace, tmp_path: Path) -> None:
    """By a stand-in that checks what it is asked for and answers as the peer does."""
    peer, path = tmp_path / "python", tmp_path / "out.json"
    peer.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        "case = json.loads(sys.argv[2])\n"
        "assert sys.argv[1].endswith('lightly_data_peer.py') and all(map(os.path.isfile, case['paths'])), case\n"
        "assert (len(case['paths']), case['global_size'], case['local_size'], case['local_crops']) == (2, 32, 16, 2)\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    print('ready', flush=True)\n"
    )
    peer.chmod(0o755)
    options = ["--quick", "--threads", "1", "--workers", "0", "--json", str(path), "--lightly"]
    assert bench.common.run(bench.data.program, [*options, str(peer)]) == 0
    content = json.loads(path.read_text())
    assert bench.data.LIGHTLY in {row["name"] for row in content["rows"]}
    assert content["ratios"][f"{bench.data.SHARE} over {bench.data.LIGHTLY}"] > 0
    assert bench.common.run(bench.data.program, [*options, str(tmp_path / "nowhere")]) == 2


def test_bad_input_is_one_line(bench: SimpleNamespace, tiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in [
        ([], "--tiles is missing"),
        (["--tiles", str(tiles), "--batch", "13"], "holds 12 tiles; --batch 13"),
        (["--tiles", str(tiles), "--global-size", "100"], "a multiple of 16"),
        (["--tiles", str(tiles / "none")], "does not exist"),
    ]:
        assert bench.common.run(bench.data.program, ["--threads", "1", *options]) == 2
        assert message in capsys.readouterr().err


def test_wrong_crops_are_an_error(bench: SimpleNamespace) -> None:
    crops = bench.data.CropsSection(global_crops_size=32, local_crops_size=16, local_crops_number=1)
    right = torch.zeros(4, 3, 32, 32), torch.zeros(2, 3, 16, 16)
    bench.data._check("one", right, crops, 2)
    for wrong in ((right[1], right[0]), (right[0], right[1] / 0)):
        with pytest.raises(bench.common.WrongResultError, match="one: crops of shapes"):
            bench.data._check("one", wrong, crops, 2)
