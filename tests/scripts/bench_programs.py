"""Running a program of scripts/bench inside a test."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"
MODULES = [path.stem for path in sorted(BENCH.glob("*.py"))]


def quick(module: ModuleType, tmp_path: Path, *options: str) -> dict[str, Any]:
    """Run a program with tiny shapes and return its JSON; the fixture `bench` must be in use."""
    path = tmp_path / "results" / "out.json"
    runner = importlib.import_module("common").run
    assert runner(module.program, ["--quick", "--threads", "1", "--no-memory", "--json", str(path), *options]) == 0
    assert [p.name for p in path.parent.iterdir()] == ["out.json"]
    content = json.loads(path.read_text())
    assert {"machine", "command", "rows", "ratios"} <= set(content)
    assert content["machine"]["torch"] == torch.__version__
    assert content["machine"]["threads"] == 1
    assert content["machine"]["cpu"]
    return content
