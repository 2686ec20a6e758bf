"""How long training waits for a checkpoint: the copy to host memory, against a save that waits until all is on disk.
`stall_over_copy` is what a save keeps training waiting over that copy alone: 1 is the least that can be.

The state is that of a whole run: student, teacher and heads of the paper's sizes, and AdamW's moments.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from common import make_parser, parse, run
from report import Report
from torch.utils._pytree import tree_leaves

from dinov2.distributed.checkpoint import Checkpointer
from dinov2.distributed.training_state import TrainingState, host_copy
from dinov2.train.optim import build_optimizer
from dinov2.train.precision import Precision
from dinov2.train.ssl_meta_arch import SSLMetaArch
from dinov2.utils.config import config_from_dict
from dinov2.utils.schema import SSLConfig

EXAMPLES = """\
  python scripts/bench/checkpoint.py --json checkpoint.json
  python scripts/bench/checkpoint.py --archs vit24 --folder /scratch
"""


def make_state(config: SSLConfig, device: torch.device) -> TrainingState:
    """Return the state of a run after one update, with all its moments."""
    torch.manual_seed(0)
    arch = SSLMetaArch(config).to(device)
    optimizer = build_optimizer(arch.student, config.optim)
    for parameter in arch.student.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    return TrainingState(arch, optimizer, Precision.from_name("fp32", device).scaler())


def measure(
    state: TrainingState, config: SSLConfig, folder: Path, repeats: int, background: bool
) -> tuple[float, float]:
    """Return the least seconds that a save kept training waiting, and until it was on disk."""
    stalls, wholes = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(dir=folder) as run_folder:
            checkpointer = Checkpointer(Path(run_folder), 1, 10**9, background)
            began = time.perf_counter()
            checkpointer.save(state, state.arch.get_submodule("teacher.backbone"), 1, config)
            stalls.append(time.perf_counter() - began)
            if problem := checkpointer.wait():
                raise OSError(problem)
            wholes.append(time.perf_counter() - began)
    return min(stalls), min(wholes)


def measure_copy(state: TrainingState, repeats: int) -> tuple[float, int]:
    """Return the least seconds that a copy of the state to host memory takes, and its bytes."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        tensors = host_copy(state.tensors(1))
        seconds.append(time.perf_counter() - began)
        size = sum(t.nbytes for t in tree_leaves(tensors))
        del tensors
    return min(seconds), size


def program(argv: Sequence[str] | None) -> None:
    """Measure the backbones that the command line asks for, and print and write the results."""
    parser: argparse.ArgumentParser = make_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--archs", nargs="+", default=["mvhybrid"], metavar="NAME", help="default: mvhybrid")
    parser.add_argument("--prototypes", type=int, default=65536, help="of each head; default: 65536")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to write to; default: the temporary one")
    args, options = parse(parser, argv, {"prototypes": 32})
    report = Report(options)
    for arch in args.archs:
        heads = {"head_n_prototypes": args.prototypes}
        config = config_from_dict({"student": {"arch": arch}, "dino": heads, "ibot": heads})
        state = make_state(config, options.device)
        copy, size = measure_copy(state, options.repeats)
        waits = {}
        for name, background in (("in the background", True), ("waiting for the disk", False)):
            stall, whole = measure(state, config, args.folder, options.repeats, background)
            waits[name] = stall
            row = {"arch": arch, "MiB": round(size / 2**20), "save": name}
            row |= {"copy_s": copy, "stall_s": stall, "stall_over_copy": stall / copy, "on_disk_s": whole}
            report.rows.append(row)
        report.ratios[f"{arch}: stall of a waiting save over that in the background"] = (
            waits["waiting for the disk"] / waits["in the background"]
        )
        report.ratios[f"{arch}: copy over stall in the background"] = copy / waits["in the background"]
        report.save()
    report.show()


if __name__ == "__main__":
    sys.exit(run(program))
