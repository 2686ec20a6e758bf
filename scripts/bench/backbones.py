"""The backbones against timm's ViT-S/16 with 12 and 24 blocks: images/s, peak memory, and the share of the machine's
measured matrix-product rate.

`matmul_share` is the operations of the call (two a multiply-add, three times as many with backward) over its time and
over the best of a few square matrix products in the same run. `extra_mib` is the peak memory beyond model and images.
"""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from backbone_calls import TIMM, Backbone, Images, check_backbone, make_backbone, make_call, make_images, multiply_adds
from common import DTYPES, Options, make_parser, parse, run
from matmul_rate import matmul_rate
from measure import MODES
from peak_memory import MIB, extra_bytes_cpu, extra_bytes_cuda
from report import Report
from timing import Timing, interleave, shown

from dinov2.utils.errors import UserError

EXAMPLES = """\
  python scripts/bench/backbones.py --json backbones.json
  python scripts/bench/backbones.py --batch 4 --names vit24 mvhybrid --no-memory
  python scripts/bench/backbones.py --device cuda --dtype bf16 --crops 128x256 512x112
"""
STUDIED = ["vit12", "vit24", "vim_einfft", "hydra_einfft", "hydra_hybrid", "mvhybrid"]
PAIRS = {"vit12": "timm ViT-S/16, 12", "vit24": "timm ViT-S/16, 24"}


def program(argv: Sequence[str] | None) -> None:
    """Measure the backbones that the command line asks for, and print and write the results."""
    parser = make_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--names", nargs="+", default=STUDIED, help=f"backbones; default: {' '.join(STUDIED)}")
    parser.add_argument("--batch", type=int, default=16, help="images; default: 16")
    parser.add_argument("--size", type=int, default=256, help="their side in pixels; default: 256")
    parser.add_argument("--crops", nargs="+", metavar="COUNTxSIZE", help="several groups in one call, instead of both")
    parser.add_argument("--no-timm", action="store_true", help="leave timm's models out")
    parser.add_argument("--matmul", type=int, nargs="+", metavar="N", help="sides of the square matrices")
    quick = {"batch": 1, "size": 32, "names": ["vit12_tiny"], "no_timm": True, "matmul": [64]}
    args, options = parse(parser, argv, quick)
    groups = _groups(args.crops) if args.crops else [Images(args.batch, args.size)]
    report = Report(options)
    rate = matmul_rate(options.device, options.dtype, None if args.matmul is None else tuple(args.matmul))
    report.note(f"square matrix products reach {rate / 1e9:.1f} GFLOP/s ({args.dtype})")
    names = [*args.names, *(() if args.no_timm else TIMM)]
    measure_backbones(names, groups, rate, options, report)
    report.show()


def measure_backbones(
    names: Sequence[str], groups: Sequence[Images], rate: float, options: Options, report: Report
) -> None:
    """Check the backbones and time them in turn, forward and with backward; add rows and ratios to the report.

    Raises:
        UserError: a backbone is unknown, or an image's side does not fit it.
        WrongResultError: a backbone's output is wrong.
    """
    images = make_images(groups, options.device)
    models: dict[str, Backbone] = {}
    forward_work: dict[str, int] = {}
    for name in shown(names, "building and checking"):
        try:
            models[name] = make_backbone(name, groups, options.device)
            check_backbone(name, models[name], images[-1][:1], options.dtype)
        except ValueError as error:
            raise UserError(str(error)) from error
        forward_work[name] = 2 * multiply_adds(models[name], groups)
    for mode in MODES:
        if options.late:
            report.note(f"out of time: {mode} was not measured")
            continue
        calls = {name: make_call(model, images, mode, options.dtype) for name, model in models.items()}
        for name in [name for name, call in calls.items() if not _fits(call)]:
            del calls[name]
            report.note(f"{name}, {mode}: out of GPU memory")
        timings = interleave(calls, options.device, options.repeats, options.seconds, mode)
        factor = 1 if mode == "forward" else 3
        speeds = {name: factor * forward_work[name] / timing.minimum for name, timing in timings.items()}
        for name, timing in shown(timings.items(), f"{mode}: memory") if options.memory else timings.items():
            row: dict[str, Any] = {"name": name, "mode": mode, "images": " ".join(map(str, groups))}
            row |= {"images_per_s": sum(group.count for group in groups) / timing.minimum, **timing.columns}
            row |= {"gflop_per_s": speeds[name] / 1e9, "matmul_share": speeds[name] / rate}
            if options.memory:
                row["extra_mib"] = _extra_bytes(name, groups, mode, calls[name], options) / MIB
            report.rows.append(row)
        report.ratios |= {f"{mode}: {name}": value for name, value in _ratios(timings, speeds).items()}
        report.save()


def _ratios(timings: dict[str, Timing], speeds: dict[str, float]) -> dict[str, float]:
    ratios = {
        f"{ours} over {peer}": timings[peer].minimum / timings[ours].minimum
        for ours, peer in PAIRS.items()
        if ours in timings and peer in timings
    }
    if "vit24" in speeds:
        hybrids = [name for name in speeds if name != "vit24" and name not in TIMM]
        ratios |= {f"matmul share, {name} over vit24": speeds[name] / speeds["vit24"] for name in hybrids}
    return ratios


def _fits(call: Callable[[], object]) -> bool:
    try:
        call()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True


def _extra_bytes(name: str, groups: Sequence[Images], mode: str, call: Callable[[], object], options: Options) -> int:
    if options.device.type == "cuda":
        return extra_bytes_cuda(call)
    sizes = [[group.count, group.size] for group in groups]
    dtype = next(key for key, value in DTYPES.items() if value == options.dtype)
    return extra_bytes_cpu("backbones", {"name": name, "mode": mode, "groups": sizes, "dtype": dtype}, options.threads)


def memory_case(case: dict[str, Any]) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a warm-up on one small image and the call, for a process that measures memory."""
    cpu, dtype = torch.device("cpu"), DTYPES[case["dtype"]]
    groups = [Images(count, size) for count, size in case["groups"]]
    model = make_backbone(case["name"], groups, cpu)
    small, images = make_images([Images(1, 32)], cpu), make_images(groups, cpu)
    return make_call(model, small, case["mode"], dtype), make_call(model, images, case["mode"], dtype)


def _groups(texts: Sequence[str]) -> list[Images]:
    matches = [re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text) for text in texts]
    if not all(matches):
        raise UserError(f"--crops {' '.join(texts)}: write each group as COUNTxSIZE, such as 128x256")
    return [Images(int(match[1]), int(match[2])) for match in matches if match]


if __name__ == "__main__":
    sys.exit(run(program))
