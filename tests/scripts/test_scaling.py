"""The program that measures several processes: it runs, and its figures fit together."""

import importlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"
NAMES = ("common", "report", "timing", "scaling")


@pytest.fixture(scope="module")
def bench():
    """The program's modules, imported as `python scripts/bench/scaling.py` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    for name in NAMES:
        sys.modules.pop(name, None)


def test_two_processes(bench, tmp_path, capsys):
    path = tmp_path / "out.json"
    assert bench.common.run(bench.scaling.program, ["--quick", "--json", str(path)]) == 0, capsys.readouterr().err
    content = json.loads(path.read_text())
    assert {"machine", "command", "rows", "ratios"} <= set(content)
    alone, two = content["rows"]
    assert (alone["processes"], alone["strategy"], alone["communication_ms"]) == (1, "none", 0)
    assert alone["efficiency"] == 1
    assert (two["processes"], two["strategy"], two["images_a_process"]) == (2, "fsdp", 2)
    assert two["images_per_s"] == pytest.approx(4 * two["steps_per_s"])
    assert two["efficiency"] == pytest.approx(two["images_per_s"] / (2 * alone["images_per_s"]))
    assert two["communication_ms"] > 0
    (ratio,) = content["ratios"].values()
    assert ratio == pytest.approx(2 * two["efficiency"])


def test_sharing_cores_is_said(bench, tmp_path, monkeypatch, capsys):
    """With figures instead of processes: four processes on two cores can at best be half as efficient."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(
        bench.scaling,
        "_measure",
        lambda processes, config, plan, strategy: {"samples": [max(1, processes / 2)], "communication": 0.1},
    )
    path = tmp_path / "out.json"
    bench.scaling.program(["--strategies", "ddp", "--json", str(path)])
    content = json.loads(path.read_text())
    four = next(row for row in content["rows"] if row["processes"] == 4 and row["images_a_process"] == 8)
    assert (four["efficiency"], four["efficiency_of_cores"]) == (0.5, 1.0)
    assert any("4 processes of 1 threads share 2 cores" in note for note in content["notes"])
    assert "share 2 cores" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes", "3"], "--processes 3: --batch 8 must be a multiple of it"),
        (["--student", "vit12"], "--student vit12: write key=value"),
        (["--student", "arch=vit13", "--processes", "1"], "vit13"),
    ],
)
def test_bad_options(bench, options, message, capsys):
    assert bench.common.run(bench.scaling.program, options) == 2
    assert message in capsys.readouterr().err
