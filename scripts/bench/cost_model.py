"""A training step on 8 to 256 GPUs, on paper: bytes sent, predicted efficiency and memory of each strategy.

Parameters, units and collectives are counted from the code that trains, operations from the traced backbone. Rates and
delays are assumptions, all of them options. Nothing is measured, and no GPU is needed: this says what to expect and in
which order to try, not what a cluster does.

Efficiency is the time of a step on one GPU over that on so many, at the same number of images a GPU. It is given as a
range: from no overlap of communication and computation to a perfect one within each of teacher, forward and backward.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from common import run
from cost_messages import Network
from cost_predict import MODELS, Machine, make_model
from cost_tables import efficiency_rows, markdown, memory_rows
from report import format_table

from dinov2.utils.errors import UserError
from dinov2.utils.files import write_text

EXAMPLES = """\
examples:
  python scripts/bench/cost_model.py
  python scripts/bench/cost_model.py --node-gbit 100 3200 --models vit_giant2 --gpus 8 64 256
  python scripts/bench/cost_model.py --write docs/scaling.md   # renews its tables
  python scripts/bench/cost_model.py --json cost_model.json

Exit codes: 0 done, 2 something given is wrong.
"""
MARKS = ("<!-- tables -->", "<!-- end of tables -->")


def program(argv: Sequence[str] | None) -> None:
    """Print the predictions that the command line asks for, and write them."""
    args = _parser().parse_args(argv)
    machine = Machine(args.gpus_per_node, args.tflops, args.fraction, args.memory_gbyte)
    networks = [Network(gbit, args.nvlink_gbyte, args.usable) for gbit in args.node_gbit]
    if bad := [count for count in args.gpus if count % machine.per_node or count <= 0]:
        raise UserError(f"--gpus {bad[0]}: it must be a multiple of the {machine.per_node} GPUs of a node")
    models = {name: make_model(name) for name in args.models}
    rows = [
        row
        for network in networks
        for name, model in models.items()
        for row in efficiency_rows(name, model, args.gpus, machine, network)
    ]
    held = [row for name, model in models.items() for row in memory_rows(name, model, args.gpus, machine)]
    print("\n".join([*format_table(rows), "", *format_table(held)]))
    if args.write:
        renew(args.write, markdown(rows, held, models, machine))
    if args.json:
        ratios = {
            f"{row['model']}, {row['gpus']} GPUs, {row['node_gbit']:g} Gb/s a node, {row['strategy']}": row[
                "efficiency_to"
            ]
            for row in rows
        }
        content = {
            "machine": {"assumed": asdict(machine) | {"networks": [asdict(network) for network in networks]}},
            "command": shlex.join(sys.orig_argv),
            "rows": rows + held,
            "ratios": ratios,
        }
        write_text(args.json, json.dumps(content, indent=1) + "\n")


def renew(page: Path, tables: str) -> None:
    """Put tables between the marks `<!-- tables -->` and `<!-- end of tables -->` of a page.

    Raises:
        UserError: the page cannot be read, or lacks the marks.
    """
    try:
        before, rest = page.read_text(encoding="utf-8").split(MARKS[0], 1)
        after = rest.split(MARKS[1], 1)[1]
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"--write {page}: expected a page with the marks {' and '.join(MARKS)} ({error})") from error
    write_text(page, f"{before}{MARKS[0]}\n\n{tables}\n\n{MARKS[1]}{after}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256], help="default: 8 to 256")
    machine, network = Machine(), Network()
    parser.add_argument("--gpus-per-node", type=int, default=machine.per_node, help="default: 8")
    parser.add_argument(
        "--tflops", type=_positive, default=machine.tflops, help="dense bf16 of a GPU; default: 989, H100"
    )
    parser.add_argument(
        "--fraction", type=_positive, default=machine.fraction, help="of it that is reached; default: 0.4"
    )
    parser.add_argument(
        "--memory-gbyte", type=_positive, default=machine.memory_gbyte, help="GB/s; default: 3350, H100"
    )
    parser.add_argument("--nvlink-gbyte", type=_positive, default=network.nvlink_gbyte, help="GB/s a GPU; default: 450")
    parser.add_argument(
        "--node-gbit",
        type=_positive,
        nargs="+",
        default=[100.0, 400.0, 3200.0],
        help="Gb/s a node; default: 100 400 3200",
    )
    parser.add_argument("--usable", type=_positive, default=network.usable, help="share of both; default: 0.8")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="renew the tables between two marks in a page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write assumptions, command, rows and ratios here")
    return parser


def _positive(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    sys.exit(run(program))
