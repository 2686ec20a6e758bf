"""One whole training step, from an augmented batch to the updated teacher: speed, peak memory and the share of the
machine's measured matrix-product rate, for each backbone, and against lightly-train's DINOv2 on its ViT-S/14 recipe.

`matmul_share` is the operations of the step (three forwards of the student and one of the teacher, every token through
every block, two a multiply-add) over its time and over the best of a few square matrix products in the same run.
`peak_mib` is all memory of model, optimiser and step. lightly-train is a peer under the AGPL: it stays in an
environment of its own (`python -m venv FOLDER && FOLDER/bin/pip install lightly-train`), named by --lightly. On CUDA
every backbone is measured without and with activation checkpointing, and waits of the host for the device are counted.
The backbones train with the paper's objective (Sinkhorn-Knopp, a head each for CLS tokens and patches), the comparison
with lightly-train with its own (softmax centring, one head). --profile says what the time of each goes to.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from common import DTYPES, Options, make_parser, parse, run
from matmul_rate import matmul_rate
from peak_memory import MIB, extra_bytes_cpu, extra_bytes_cuda
from peer_steps import PeerSteps
from report import Report, format_table
from timing import interleave
from top_kernels import top_kernels
from train_recipe import Recipe, make_step, operations

from dinov2.utils.files import write_text

EXAMPLES = """\
  python scripts/bench/train_step.py --json train_step.json
  python scripts/bench/train_step.py --backbones vit24 mvhybrid --batch 4 --steps 5
  python scripts/bench/train_step.py --backbones --lightly FOLDER/bin/python
  python scripts/bench/train_step.py --device cuda --dtype bf16 --batch 64
  python scripts/bench/train_step.py --backbones mvhybrid --profile kernels.txt
"""
STUDIED = ["vit12", "vit24", "vim_einfft", "hydra_einfft", "hydra_hybrid", "mvhybrid"]
LIGHTLY = "lightly-train, ViT-S/14"
LIGHTLY_MODEL = "dinov2/vits14-noreg-notpretrained"
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def program(argv: Sequence[str] | None) -> None:
    """Measure what the command line asks for, and print and write the results."""
    parser = make_parser(__doc__ or "", EXAMPLES)
    parser.set_defaults(repeats=3, seconds=600.0)
    parser.add_argument("--backbones", nargs="*", default=STUDIED, help=f"default: {' '.join(STUDIED)}")
    parser.add_argument("--batch", type=int, default=8, help="images a step; default: 8")
    parser.add_argument("--steps", type=int, dest="repeats", default=3, help="the same as --repeats; default: 3")
    parser.add_argument("--size", type=int, nargs=2, default=[256, 112], help="sides of the crops; default: 256 112")
    parser.add_argument("--local", type=int, default=8, help="local crops an image; default: 8")
    parser.add_argument("--prototypes", type=int, default=65536, help="of the head; default: 65536")
    parser.add_argument("--lightly", type=Path, metavar="PYTHON", help="compare with the lightly-train of this Python")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write the longest kernels and their shares here")
    parser.add_argument("--matmul", type=int, nargs="+", metavar="N", help="sides of the square matrices")
    quick = {"batch": 2, "size": [32, 16], "local": 1, "prototypes": 64, "matmul": [64], "backbones": ["vit12_tiny"]}
    args, options = parse(parser, argv, quick)
    report = Report(options)
    rate = matmul_rate(options.device, options.dtype, None if args.matmul is None else tuple(args.matmul))
    report.note(f"square matrix products reach {rate / 1e9:.1f} GFLOP/s ({args.dtype})")
    recipes = {}
    for name in args.backbones:
        recipe = Recipe(name, args.batch, 16, args.size[0], args.size[1], args.local, args.prototypes)
        recipes[name] = recipe
        if options.device.type == "cuda":
            recipes[f"{name}, checkpointing"] = replace(recipe, checkpointing=True)
    with ExitStack() as stack:
        peers: dict[str, Callable[[], object]] = {}
        if args.lightly is not None:
            sizes = (args.batch, 14, 224, 98, args.local, args.prototypes)
            ours = Recipe("vit_small", *sizes, drop_path=0.1, centering="centering", separate_head=False)
            recipes |= {"vit_small/14": ours, LIGHTLY: ours}
            peers[LIGHTLY] = stack.enter_context(_lightly(args.lightly, ours, options)).step
        _measure(recipes, peers, rate, options, report, args.profile)
    report.show()


def _measure(
    recipes: dict[str, Recipe],
    peers: dict[str, Callable[[], object]],
    rate: float,
    options: Options,
    report: Report,
    profile: Path | None,
) -> None:
    """Time the steps that are to be compared in turn, and add rows and ratios to the report."""
    times: dict[str, float] = {}
    profiles: list[str] = []
    pairs = [["vit_small/14", LIGHTLY], *([name] for name in recipes if "/14" not in name)]
    for names in [[name for name in pair if name in recipes] for pair in pairs]:
        if not names or options.late:
            continue
        try:
            calls = {name: peers.get(name) or make_step(recipes[name], options.device, options.dtype) for name in names}
            timings = interleave(calls, options.device, options.repeats, options.seconds)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            report.note(f"{', '.join(names)}: out of GPU memory")
            continue
        for name, timing in timings.items():
            recipe, seconds = recipes[name], timing.minimum
            times[name] = seconds
            speed = operations(recipe) / seconds
            row: dict[str, Any] = {"name": name, "crops": str(recipe), "batch": recipe.batch, **timing.columns}
            row |= {"centering": recipe.centering, "heads": 1 + recipe.separate_head}
            row |= {"steps_per_s": 1 / seconds, "images_per_s": recipe.batch / seconds}
            row |= {"gflop_per_s": speed / 1e9, "matmul_share": speed / rate}
            if name not in peers:
                row |= _costs(recipe, calls[name], options)
                if profile:
                    profiles += [f"{name}, {recipe}, batch {recipe.batch}, {options.dtype}:"]
                    profiles += [*format_table(top_kernels(calls[name], options.device)), ""]
            report.rows.append(row)
        del calls
        report.ratios |= _ratios(times)
        report.save()
        if profile:
            write_text(profile, "\n".join(profiles))


def _costs(recipe: Recipe, call: Callable[[], object], options: Options) -> dict[str, float | int]:
    """Return the peak memory of a step, and on CUDA how often the host waits for the device in one."""
    if options.device.type == "cuda":
        resident = torch.cuda.memory_allocated()
        found = {"peak_mib": (resident + extra_bytes_cuda(call)) / MIB} if options.memory else {}
        return found | {"host_waits": _host_waits(call)}
    if not options.memory:
        return {}
    dtype = next(name for name, value in DTYPES.items() if value == options.dtype)
    extra = extra_bytes_cpu("train_step", {"recipe": asdict(recipe), "dtype": dtype}, options.threads)
    return {"peak_mib": extra / MIB}


def _host_waits(call: Callable[[], object]) -> int:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
    return sum(event.count for event in profile.key_averages() if event.key in WAITS)


def memory_case(case: dict[str, Any]) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a tiny step as a warm-up, and two whole steps (the first makes the optimiser's state), model included."""
    recipe, cpu, dtype = Recipe(**case["recipe"]), torch.device("cpu"), DTYPES[case["dtype"]]
    tiny = replace(recipe, batch=1, global_size=2 * recipe.patch, local_size=recipe.patch, prototypes=64)

    def two_steps() -> None:
        step = make_step(recipe, cpu, dtype)
        step()
        step()

    return make_step(tiny, cpu, dtype), two_steps


def _ratios(times: dict[str, float]) -> dict[str, float]:
    ratios = {}
    if LIGHTLY in times:
        ratios[f"vit_small/14 over {LIGHTLY}"] = times[LIGHTLY] / times["vit_small/14"]
    if "vit24" in times:
        ratios |= {f"{n} over vit24": times["vit24"] / t for n, t in times.items() if n in STUDIED and n != "vit24"}
    return ratios


def _lightly(python: Path, recipe: Recipe, options: Options) -> PeerSteps:
    case = {key: value for key, value in asdict(recipe).items() if key != "backbone"}
    dtype = next(name for name, value in DTYPES.items() if value == options.dtype)
    case |= {"device": options.device.type, "dtype": dtype, "threads": options.threads, "model": LIGHTLY_MODEL}
    return PeerSteps(python, Path(__file__).with_name("lightly_peer.py"), case)


if __name__ == "__main__":
    sys.exit(run(program))
