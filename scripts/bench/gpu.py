"""What needs a GPU, in one command under eight minutes: the GPU tests, then the kernels and the backbones on CUDA in
bf16 on the training batch of 64 images, 2 crops of 256 px and 8 of 112 px each. `--parts uses` measures the rest under
ten minutes: the training step, the input pipeline (on the tiles that --tiles names), embedding and HEST.

Every part has its share of the time, and the JSON file is written anew after each.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from common import make_folder_of, run
from gpu_parts import (
    BUILD_SECONDS,
    FIRST_TEST_SECONDS,
    GROUPS,
    PARTS,
    VENDOR_TEST_SECONDS,
    Part,
    chosen_parts,
    first_tests,
    vendor_tests,
)
from gpu_results import GpuResults
from limited import Limited

from dinov2.utils.errors import UserError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXAMPLES = """\
examples:
  python scripts/bench/gpu.py --build-peers --json docs/bench/h100.json
  python scripts/bench/gpu.py --parts uses --tiles TILES --no-tests --json docs/bench/h100_uses.json
  python scripts/bench/gpu.py --build-peers --sdists FOLDER --no-tests --parts selective_scan ssd

Exit codes: 0 all passed, 1 a test or a part failed or ran out of time, 2 there is no GPU, or an option is wrong,
130 interrupted; what was measured until then is in the file.
"""
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--continue-on-collection-errors"]


def program(argv: Sequence[str] | None) -> None:
    """Run the tests and the parts, and write one JSON file.

    Raises:
        UserError: there is no CUDA device, or an option is wrong.
        SystemExit: with code 1, when a test or a part failed, and 130 after an interrupt or a SIGTERM.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "bench" / "gpu.json", help="default: %(default)s")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=[*GROUPS, *PARTS],
        default=["kernels"],
        metavar="PART",
        help=f"of {', '.join(PARTS)}, or a group: kernels (the first five), uses (the others), all; default: kernels",
    )
    parser.add_argument("--tiles", type=Path, metavar="FOLDER", help="JPEG tiles for the part data, 64 or more")
    parser.add_argument("--no-tests", action="store_true", help="leave the tests out")
    parser.add_argument("--build-peers", action="store_true", help="compile mamba-ssm's and causal-conv1d's kernels")
    parser.add_argument("--sdists", type=Path, help="folder with their source distributions; default: download them")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise UserError("PyTorch finds no CUDA device here; the other programs of scripts/bench run on a CPU")
    if args.tiles is None and "data" in args.parts:
        raise UserError("--parts data needs --tiles FOLDER, a folder of JPEG tiles")
    make_folder_of(args.json)
    results = GpuResults(args.json)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as `timeout` and schedulers send it
    try:
        with tempfile.TemporaryDirectory() as folder:
            _measure(args, Path(folder), results)
    except KeyboardInterrupt:
        results.note("interrupted: the rest was not measured")
        results.save()
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    print(f"{args.json}: {len(results.content['rows'])} rows in {results.content['seconds']:.0f} s")
    if not results.passed:
        raise SystemExit(1)


def _measure(args: argparse.Namespace, folder: Path, results: GpuResults) -> None:
    """Run the tests and the parts; what the peers' builder makes is in the path of all that come after it."""
    plain = _environment()
    peers = _environment(folder)
    with ExitStack() as stack:
        builder = None
        if args.build_peers:  # compiles on the CPU while the tests use the GPU
            sdists = [] if args.sdists is None else ["--sdists", str(args.sdists.absolute())]
            command = [sys.executable, str(HERE / "build_peers.py"), str(folder), *sdists]
            builder = stack.enter_context(Limited(command, BUILD_SECONDS, plain, ROOT))
        if not args.no_tests:
            _tests(first_tests(ROOT), FIRST_TEST_SECONDS, plain, folder, results)
        if builder is not None:
            built = builder.finish()
            if built.code != 0:
                results.note(f"the peers were not built: {built.last_line}")
            print(f"peers: exit code {built.code} after {built.seconds:.0f} s; {built.last_line}")
    if not args.no_tests:
        _tests(vendor_tests(), VENDOR_TEST_SECONDS, peers, folder, results)
    for name in chosen_parts(args.parts):
        part = PARTS[name]
        if name == "data":
            if args.tiles is None:
                results.note("data: not measured, since no --tiles were given")
                continue
            part = Part((*part.options, "--tiles", str(args.tiles.absolute())), part.seconds)
        _part(name, part, folder / f"{name}.json", peers, results)
    results.save()


def _environment(*folders: Path) -> dict[str, str]:
    paths = [*map(str, folders), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _tests(
    groups: Mapping[str, list[str]], seconds: float, environment: dict[str, str], folder: Path, results: GpuResults
) -> None:
    """Run groups of tests, which share the time, each in a process of its own."""
    for i, (name, selection) in enumerate(groups.items()):
        report = folder / f"tests_{seconds}_{i}.xml"
        command = [*PYTEST, f"--junitxml={report}", *selection]
        print(f"{name}: at most {seconds / len(groups):.0f} s", flush=True)
        with Limited(command, seconds / len(groups), environment, ROOT) as tests:
            result = tests.finish()
        results.add_tests(name, result, report)


def _part(name: str, part: Part, written: Path, environment: dict[str, str], results: GpuResults) -> None:
    """Run a benchmark program and add what it has written."""
    limits = ["--repeats", "10", "--seconds", "2", "--limit", str(0.6 * part.seconds)]
    where = ["--device", "cuda", "--dtype", "bf16", "--json", str(written)]
    command = [sys.executable, str(HERE / f"{name}.py"), *where, *limits, *part.options]
    print(f"{name}: at most {part.seconds:.0f} s", flush=True)
    with Limited(command, part.seconds, environment, ROOT) as benchmark:
        try:
            result = benchmark.finish()
        except KeyboardInterrupt:
            results.add_rows(name, written)
            raise
    results.add_part(name, result, written)


if __name__ == "__main__":
    sys.exit(run(program))
