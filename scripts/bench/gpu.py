"""Everything that needs a GPU, in one command under twelve minutes: the GPU tests, then all benchmarks on CUDA in bf16
on the training batch of 64 images, 2 crops of 256 px and 8 of 112 px each. Every part has its share of the time. The
input pipeline (part `data`) is measured on the tiles that --tiles names.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import run
from limited import Limited

from dinov2.utils.errors import UserError
from dinov2.utils.files import write_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXAMPLES = """\
examples:
  python scripts/bench/gpu.py
  python scripts/bench/gpu.py --build-peers --tiles TILES --json docs/bench/h100.json
  python scripts/bench/gpu.py --build-peers --sdists FOLDER --no-tests --parts selective_scan ssd

Exit codes: 0 all passed, 1 a test or a part failed or ran out of time, 2 there is no GPU, or an option is wrong.
"""


@dataclass(frozen=True)
class Part:
    """A benchmark program with its options and its time in seconds."""

    options: tuple[str, ...]
    seconds: float


CROPS = ("--batch", "128", "512", "--lengths", "257", "50")  # 64 images: 2 global and 8 local crops
PARTS = {
    "selective_scan": Part(CROPS, 80),
    "ssd": Part(CROPS, 55),
    "einfft": Part(CROPS, 25),
    "conv_silu": Part(CROPS, 25),
    "backbones": Part(("--crops", "128x256", "512x112"), 95),
    "train_step": Part(("--batch", "64"), 120),
    "data": Part(("--batch", "64", "--threads", "1"), 90),
}
TEST_SECONDS, BUILD_SECONDS = 150.0, 180.0
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--continue-on-collection-errors"]


def program(argv: Sequence[str] | None) -> None:
    """Run the tests and the parts, and write one JSON file.

    Raises:
        UserError: there is no CUDA device.
        SystemExit: with code 1, when a test or a part failed.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "bench" / "gpu.json", help="default: %(default)s")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), help="default: all; data where --tiles is given")
    parser.add_argument("--tiles", type=Path, metavar="FOLDER", help="JPEG tiles for the part data, 64 or more")
    parser.add_argument("--no-tests", action="store_true", help="leave the tests out")
    parser.add_argument("--build-peers", action="store_true", help="compile mamba-ssm's and causal-conv1d's kernels")
    parser.add_argument("--sdists", type=Path, help="folder with their source distributions; default: download them")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise UserError("PyTorch finds no CUDA device here; the other programs of scripts/bench run on a CPU")
    if args.tiles is None and "data" in (args.parts or ()):
        raise UserError("--parts data needs --tiles FOLDER, a folder of JPEG tiles")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        content, passed = _measure(args, Path(folder))
    content["seconds"] = time.monotonic() - begin
    write_text(args.json, json.dumps(content, indent=1) + "\n")
    print(f"{args.json}: {len(content['rows'])} rows in {content['seconds']:.0f} s")
    if not passed:
        raise SystemExit(1)


def _measure(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], bool]:
    """Return the JSON's content, and whether everything passed."""
    content: dict[str, Any] = {
        "machine": None,
        "command": shlex.join(sys.orig_argv),
        "rows": [],
        "ratios": {},
        "notes": [],
        "tests": {},
    }
    paths = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    builder = None
    if args.build_peers:  # compiles on the CPU while the tests use the GPU
        sdists = [] if args.sdists is None else ["--sdists", str(args.sdists)]
        command = [sys.executable, str(HERE / "build_peers.py"), str(folder), *sdists]
        builder = Limited(command, BUILD_SECONDS, environment, ROOT)
    passed = True
    tests = {} if args.no_tests else _tests()
    for name, selection in tests.items():
        result = Limited([*PYTEST, *selection], TEST_SECONDS / len(tests), environment, ROOT).finish()
        passed &= result.code == 0
        content["tests"][name] = {"exit_code": result.code, "summary": result.last_line, "seconds": result.seconds}
        print(f"{name}: {result.last_line}")
    if builder is not None:
        result = builder.finish()
        if result.code != 0:
            content["notes"].append(f"the peers were not built: {result.last_line}")
        print(f"peers: exit code {result.code} after {result.seconds:.0f} s; {result.last_line}")
    for name in args.parts or PARTS:
        part = PARTS[name]
        if name == "data":
            if args.tiles is None:
                content["notes"].append("data: not measured, since no --tiles were given")
                print(content["notes"][-1])
                continue
            part = Part((*part.options, "--tiles", str(args.tiles.absolute())), part.seconds)
        passed &= _part(name, part, folder / f"{name}.json", environment, content)
    return content, passed


def _tests() -> dict[str, list[str]]:
    """Return pytest's selection of each group of tests."""
    triton = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/ops/test_triton_*.py"))
    groups = {"tests marked gpu": ["-m", "gpu and not slow", "tests"]}
    return groups | ({"Triton tests": ["-m", "not gpu", *triton]} if triton else {})


def _part(name: str, part: Part, results: Path, environment: dict[str, str], content: dict[str, Any]) -> bool:
    """Run a benchmark program, add what it has written to `content`, and return whether it succeeded."""
    limits = ["--repeats", "10", "--seconds", "2", "--limit", str(0.6 * part.seconds)]
    where = ["--device", "cuda", "--dtype", "bf16", "--json", str(results)]
    command = [sys.executable, str(HERE / f"{name}.py"), *where, *limits, *part.options]
    result = Limited(command, part.seconds, environment, ROOT).finish()
    print(f"\n{name} ({result.seconds:.0f} s)\n{result.output.strip()}")
    if result.code != 0:
        content["notes"].append(f"{name}: exit code {result.code}: {result.last_line}")
    if results.is_file():  # it is written after every shape, so that running out of time loses little
        found = json.loads(results.read_text())
        content["machine"] = found["machine"]
        content["rows"] += [{"part": name, **row} for row in found["rows"]]
        content["ratios"] |= {f"{name}, {ratio}": value for ratio, value in found["ratios"].items()}
        content["notes"] += [f"{name}: {note}" for note in found["notes"]]
    return result.code == 0


if __name__ == "__main__":
    sys.exit(run(program))
