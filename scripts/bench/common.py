"""What the programs share: command-line options, the device, and errors for the user."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dinov2.utils.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """Where and how long to measure.

    Attributes:
        device: where the tensors live.
        dtype: precision of the activations; parameters stay float32.
        threads: threads of PyTorch's CPU operators.
        repeats: samples of every call.
        seconds: a call that has been timed for so long sits out the remaining rounds.
        memory: whether to measure peak memory.
        deadline: time.monotonic() after which no further shape is begun.
        json: file for the results, or None.
    """

    device: torch.device
    dtype: torch.dtype
    threads: int
    repeats: int
    seconds: float
    memory: bool
    deadline: float
    json: Path | None

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() > self.deadline


def make_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all programs take."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"examples:\n{examples}\nExit codes: 0 measured, 1 a result is wrong, 2 something given is wrong.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, command, rows and ratios here")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: cpu")
    parser.add_argument("--dtype", default="fp32", choices=tuple(DTYPES), help="of the activations; default: fp32")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help=f"CPU threads; default: all cores ({cores})")
    parser.add_argument("--repeats", type=int, default=7, help="samples of every call; default: 7")
    parser.add_argument("--seconds", type=float, default=20.0, help="time at most for one call's samples; default: 20")
    parser.add_argument("--limit", type=float, default=float("inf"), help="begin nothing new after so many seconds")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, one sample: does it run?")
    return parser


POSITIVE = (
    *("threads", "repeats", "seconds", "batch", "lengths", "scaling"),
    *("dim", "states", "headdim", "width", "size", "matmul"),
)


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, quick: Mapping[str, Any]
) -> tuple[argparse.Namespace, Options]:
    """Return the arguments and the options common to all programs; `quick` are the defaults under --quick.

    Raises:
        UserError: no CUDA device where one is asked for, or a number that is not positive.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if "--quick" in given:
        parser.set_defaults(repeats=1, seconds=0.1, **quick)
    args = parser.parse_args(given)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA device here; leave the option out to measure the CPU")
    for name in POSITIVE:
        given_values = getattr(args, name, None)
        for value in given_values if isinstance(given_values, list) else [given_values]:
            if value is not None and value <= 0:
                raise UserError(f"--{name} {value}: it must be positive")
    if args.json is not None:
        make_folder_of(args.json)
    torch.set_num_threads(args.threads)
    options = Options(
        device=torch.device(args.device),
        dtype=DTYPES[args.dtype],
        threads=args.threads,
        repeats=args.repeats,
        seconds=args.seconds,
        memory=not args.no_memory,
        deadline=time.monotonic() + args.limit,
        json=args.json,
    )
    return args, options


def make_folder_of(file: Path) -> None:
    """Make the folder of the results' file: what is wrong with it is said now, not after minutes of measuring.

    Raises:
        UserError: it cannot be made.
    """
    try:
        file.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--json {file}: its folder cannot be made: {error}; name another file") from error


class WrongResultError(RuntimeError):
    """A contender's output is not the operator's."""


def run(program: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run a program and return its exit code; errors meant for the user become one line on stderr."""
    try:
        program(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WrongResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
