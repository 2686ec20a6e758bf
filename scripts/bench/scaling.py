"""Training steps of 1, 2 and 4 processes on this machine, over gloo, with DDP and FSDP2.

Once at a constant batch for each process, once at a constant batch for all of them. `efficiency` is images/s over what
so many times one process alone would reach. With more processes than cores they share the cores, and it cannot exceed
cores / processes: `efficiency_of_cores` is relative to as many processes as there are cores. `communication_ms` is the
part of a step in which the first process has a collective under way, waiting for the others included.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from common import make_parser, parse, run
from report import Report
from timing import Timing

from dinov2.utils.errors import UserError

EXAMPLES = """\
  python scripts/bench/scaling.py --json scaling.json
  python scripts/bench/scaling.py --processes 1 2 --strategies fsdp hsdp --student arch=vit12 embed_dim=192 num_heads=3
"""
PROGRAM = Path(__file__).with_name("scaling_ranks.py")
TIMEOUT = 1800
HEAD = {"head_n_prototypes": 4096, "head_hidden_dim": 512, "head_bottleneck_dim": 128}
STUDENT = ["arch=mvhybrid", "size=tiny", "depth=12"]
TINY = ["arch=mvhybrid", "embed_dim=32", "num_heads=2", "depth=2"]


def program(argv: Sequence[str] | None) -> None:
    """Measure what the command line asks for, and print and write the results."""
    parser = make_parser(__doc__ or "", EXAMPLES)
    parser.set_defaults(threads=1)
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2, 4], help="default: 1 2 4; 1 is measured always"
    )
    parser.add_argument("--strategies", nargs="+", default=["ddp", "fsdp"], choices=("ddp", "fsdp", "hsdp"))
    kinds = ("process", "all")
    parser.add_argument(
        "--constant", nargs="+", default=kinds, choices=kinds, help="batch of one or all; default: both"
    )
    parser.add_argument("--batch", type=int, default=8, help="images of one process, and of all; default: 8")
    parser.add_argument("--steps", type=int, default=5, help="steps of a sample; default: 5")
    parser.add_argument(
        "--crops", type=int, nargs=2, default=[128, 64], metavar=("GLOBAL", "LOCAL"), help="px; default: 128 64"
    )
    parser.add_argument(
        "--student", nargs="+", default=STUDENT, metavar="KEY=VALUE", help=f"default: {' '.join(STUDENT)}"
    )
    quick = {
        "constant": ["process"],
        "processes": [2],
        "strategies": ["fsdp"],
        "batch": 2,
        "steps": 1,
        "crops": [32, 16],
        "student": TINY,
    }
    args, options = parse(parser, argv, quick)
    if options.device.type != "cpu":
        raise UserError("--device cuda: this program measures processes on CPUs; leave the option out")
    if bad := [count for count in args.processes if count < 1 or args.batch % count]:
        raise UserError(
            f"--processes {bad[0]}: --batch {args.batch} must be a multiple of it, for a constant batch of all"
        )
    config = {
        "student": _section(args.student),
        "crops": {"global_crops_size": args.crops[0], "local_crops_size": args.crops[1], "local_crops_number": 4},
        "dino": HEAD,
        "ibot": HEAD,
    }
    report = Report(options)
    cores = len(os.sched_getaffinity(0))
    plan = {"steps": args.steps, "repeats": options.repeats, "threads": options.threads}
    alone = _measure(1, config, plan | {"images": args.batch}, "none")
    alone_speed = args.batch / min(alone["samples"])
    report.rows.append(_row(alone, "one process", "none", 1, args.batch, alone_speed, cores))
    for constant in args.constant:
        scaling = f"constant batch, {constant}"
        for strategy in args.strategies:
            for processes in [count for count in dict.fromkeys(args.processes) if count > 1]:
                if options.late:
                    report.note(f"out of time: {strategy}, {processes} processes, {scaling} was not measured")
                    continue
                images = args.batch if constant == "process" else args.batch // processes
                result = _measure(processes, config, plan | {"images": images}, strategy)
                row = _row(result, scaling, strategy, processes, images, alone_speed, cores)
                report.rows.append(row)
                name = f"{scaling}: {strategy}, images/s of {processes} processes over 1"
                report.ratios[name] = row["images_per_s"] / alone_speed
                report.save()
    if (most := max(args.processes)) * options.threads > cores:
        report.note(
            f"{most} processes of {options.threads} threads share {cores} cores: they cannot all compute at once"
        )
    report.save()
    report.show()


def _row(
    result: dict[str, Any], scaling: str, strategy: str, processes: int, images: int, alone: float, cores: int
) -> dict[str, Any]:
    timing = Timing(tuple(result["samples"]))
    speed = processes * images / timing.minimum
    return {
        "scaling": scaling,
        "strategy": strategy,
        "processes": processes,
        "images_a_process": images,
        "steps_per_s": 1 / timing.minimum,
        "images_per_s": speed,
        "efficiency": speed / (processes * alone),
        "efficiency_of_cores": speed / (min(processes, cores) * alone),
        "communication_ms": 1e3 * result["communication"],
        **timing.columns,
    }


def _measure(processes: int, config: dict[str, Any], plan: dict[str, Any], strategy: str) -> dict[str, Any]:
    """Start the processes as torchrun would, and return what the first one prints.

    Raises:
        UserError: one of them failed (with the last line of its messages).
    """
    case = json.dumps(plan | {"config": config | {"parallel": {"strategy": strategy}}})
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environ = os.environ | {
        "OMP_NUM_THREADS": str(plan["threads"]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    started = []
    for rank in range(processes):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        started.append(
            subprocess.Popen(
                [sys.executable, str(PROGRAM), case],
                env=environ | {name: str(value) for name, value in ranks.items()},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=TIMEOUT) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, outputs, strict=True):
        if process.returncode:
            last = errors.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
            raise UserError(f"{strategy}, {processes} processes: {last[0]}")
    result: dict[str, Any] = json.loads(outputs[0][0].strip().splitlines()[-1])
    return result


def _section(pairs: Sequence[str]) -> dict[str, Any]:
    if bad := [pair for pair in pairs if "=" not in pair]:
        raise UserError(f"--student {bad[0]}: write key=value, such as arch=vit12")
    return {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in pairs)}


if __name__ == "__main__":
    sys.exit(run(program))
