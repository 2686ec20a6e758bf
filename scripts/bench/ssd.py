"""State-space duality (arXiv 2405.21060) as Hydra's mixer needs it: our backends, plain loops, mamba-ssm's kernels.

Inputs are as in the Hydra layer: heads of 64 channels, 64 states, B and C side by side in one tensor, and both
directions as one batch, so that the operator sees twice as many sequences as `batch` says.
"""

import functools
import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from common import make_parser, parse, run
from measure import add_shape_options, measure_lengths
from operators import (
    Contender,
    Note,
    Operator,
    Shape,
    Workload,
    leaves,
    operator_memory_case,
    our_contenders,
    our_default,
)
from report import Report
from ssd_peers import CHUNK, block_matrix, exact_ssd, literal_loop, mamba_ssm_ssd
from torch import Tensor

from dinov2.layers.hydra import Hydra
from dinov2.ops import ssd
from dinov2.utils.errors import UserError

EXAMPLES = """\
  python scripts/bench/ssd.py --json ssd.json
  python scripts/bench/ssd.py --lengths 257 --scaling --without "plain loop" --repeats 15
  python scripts/bench/ssd.py --device cuda --dtype bf16 --batch 128 512 --lengths 257 50
"""


def make(shape: Shape, device: torch.device, dtype: torch.dtype) -> Workload:
    """Return x (2B, L, H, P), dt (2B, L, H), A (H,) and BC (2B, L, 1, 2N), drawn with a fixed seed."""
    batch, length, width = 2 * shape["batch"], shape["length"], shape["headdim"]
    heads = 2 * shape["dim"] // width
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    x, grad = (normal(batch, length, heads, width).to(device, dtype) for _ in range(2))
    dt = F.softplus(normal(batch, length, heads) - 2).to(device)  # float32, as after the layer's softplus
    BC = normal(batch, length, 1, 2 * shape["states"]).to(device, dtype)
    A = -torch.linspace(0.5, 2.0, heads, device=device)
    return Workload(leaves((x, dt, A, BC)), (True, True, False, True), grad)


def contenders(shape: Shape, device: torch.device, dtype: torch.dtype, note: Note) -> list[Contender]:
    """Return our backends that run there, then the peers that are installed."""
    found = our_contenders("ssd", _ours, device, dtype, shape["states"], shape["headdim"])
    found += [Contender("plain loop", literal_loop, True), Contender("block matrices", block_matrix, True)]
    if device.type == "cuda":
        try:
            found.append(Contender("mamba-ssm", mamba_ssm_ssd(), True))
        except ImportError as error:
            note(f"mamba-ssm's kernels are left out ({error}); `python scripts/bench/gpu.py --build-peers` builds them")
    return found


def ours(shape: Shape, device: torch.device, dtype: torch.dtype) -> str:
    """Return the name of the backend that `auto` takes there."""
    return our_default("ssd", device, dtype, shape["states"], shape["headdim"])


def _ours(x: Tensor, dt: Tensor, A: Tensor, BC: Tensor, *, backend: str) -> Tensor:
    B, C = BC.chunk(2, dim=-1)
    return ssd(x, dt, A, B, C, CHUNK, backend=backend)


def layer(shape: Shape) -> Hydra:
    """Return the Hydra mixer."""
    return Hydra(shape["dim"], shape["states"], headdim=shape["headdim"])


OPERATOR = Operator("ssd", make, contenders, ours, exact_ssd, layer)
memory_case = functools.partial(operator_memory_case, OPERATOR)


def program(argv: Sequence[str] | None) -> None:
    """Measure the shapes that the command line asks for, and print and write the results."""
    parser = make_parser(__doc__ or "", EXAMPLES)
    add_shape_options(parser, batch=8, lengths=[50, 257], scaling=[257, 1025, 4097])
    parser.add_argument("--states", type=int, default=64, help="states of each channel; default: 64")
    parser.add_argument("--headdim", type=int, default=64, help="channels of a head; default: 64")
    quick = {"batch": [1], "lengths": [5], "scaling": [], "dim": 16, "states": 4, "headdim": 8}
    args, options = parse(parser, argv, quick)
    if 2 * args.dim % args.headdim:
        rule = f"the heads divide twice the width, so it must be a multiple of {args.headdim} / 2 (see --headdim)"
        raise UserError(f"--dim {args.dim}: {rule}")
    report = Report(options)
    shape = {"dim": args.dim, "states": args.states, "headdim": args.headdim}
    measure_lengths(OPERATOR, args, shape, options, report)
    report.show()


if __name__ == "__main__":
    sys.exit(run(program))
