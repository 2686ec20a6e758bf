"""The selective scan (arXiv 2312.00752): our backends, mamba-ssm's reference loop, mambapy, mamba-ssm's CUDA kernels.

Inputs are as in the models: (B, L, D) tensors, handed to `dinov2.ops.selective_scan` as transposed views; delta has a
bias and a softplus. `extra_over_io` is the peak memory of a call beyond its inputs over the bytes of inputs and output.
"""

import functools
import sys
from collections.abc import Sequence

import torch
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
from scan_peers import exact_scan, literal_loop, mamba_ssm_scan, mambapy_scan
from torch import Tensor

from dinov2.layers.mamba_vision import MambaVisionMixer
from dinov2.ops import selective_scan

EXAMPLES = """\
  python scripts/bench/selective_scan.py --json scan.json
  python scripts/bench/selective_scan.py --lengths 257 --scaling --without "reference loop" --repeats 15
  python scripts/bench/selective_scan.py --device cuda --dtype bf16 --batch 128 --lengths 257
"""


def make(shape: Shape, device: torch.device, dtype: torch.dtype) -> Workload:
    """Return u, delta (B, L, D), A (D, N), B, C (B, L, N), D and the bias of delta (D,), drawn with a fixed seed."""
    batch, length, dim, states = (shape[key] for key in ("batch", "length", "dim", "states"))
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    u, delta, grad = (normal(batch, length, dim) for _ in range(3))
    B, C = normal(batch, length, states), normal(batch, length, states)
    A = -torch.arange(1.0, states + 1, device=device).repeat(dim, 1)
    D, bias = torch.ones(dim, device=device), torch.full((dim,), -2.0, device=device)
    inputs = leaves((u, delta, A, B, C, D, bias))
    return Workload(inputs, (True, True, False, True, True, False, False), grad)


def contenders(shape: Shape, device: torch.device, dtype: torch.dtype, note: Note) -> list[Contender]:
    """Return our backends that run there, then the peers that are installed."""
    found = our_contenders("selective_scan", _ours, device, dtype, shape["states"])
    found.append(Contender("reference loop", literal_loop, True))
    try:
        found.append(Contender("mambapy", mambapy_scan(), True))
    except ImportError:
        note("mambapy is not installed and left out; `pip install mambapy` adds it")
    if device.type == "cuda":
        try:
            scan = mamba_ssm_scan()
            found.append(Contender("mamba-ssm", scan, True))
            found.append(Contender("mamba-ssm, its own layout", scan, True, channels_outside=True))
        except ImportError as error:
            note(f"mamba-ssm's kernels are left out ({error}); `python scripts/bench/gpu.py --build-peers` builds them")
    return found


def ours(shape: Shape, device: torch.device, dtype: torch.dtype) -> str:
    """Return the name of the backend that `auto` takes there."""
    return our_default("selective_scan", device, dtype, shape["states"])


def _ours(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, *, backend: str
) -> Tensor:
    u, delta, B, C = u.mT, delta.mT, B.mT, C.mT  # (B, D, L) and (B, N, L)
    return selective_scan(u, delta, A, B, C, D, None, bias, delta_softplus=True, backend=backend).mT


def layer(shape: Shape) -> MambaVisionMixer:
    """Return the mixer of MVHybrid."""
    return MambaVisionMixer(shape["dim"], shape["states"])


OPERATOR = Operator("selective_scan", make, contenders, ours, exact_scan, layer)
memory_case = functools.partial(operator_memory_case, OPERATOR)


def program(argv: Sequence[str] | None) -> None:
    """Measure the shapes that the command line asks for, and print and write the results."""
    parser = make_parser(__doc__ or "", EXAMPLES)
    add_shape_options(parser, batch=8, lengths=[50, 257], scaling=[257, 1025, 4097])
    parser.add_argument("--states", type=int, default=16, help="states of each channel; default: 16")
    quick = {"batch": [2], "lengths": [5], "scaling": [5, 9], "dim": 16, "states": 4}
    args, options = parse(parser, argv, quick)
    report = Report(options)
    measure_lengths(OPERATOR, args, {"dim": args.dim, "states": args.states}, options, report)
    report.show()


if __name__ == "__main__":
    sys.exit(run(program))
