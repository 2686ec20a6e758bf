"""EinFFT (SiMBA, arXiv 2403.15360): our backends against the literal formulation by fft2."""

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
from torch import Tensor

from dinov2.ops.einfft import BLOCKS, einfft
from dinov2.utils.errors import UserError

EXAMPLES = """\
  python scripts/bench/einfft.py --json einfft.json
  python scripts/bench/einfft.py --batch 16 --lengths 257 --scaling --repeats 20
  python scripts/bench/einfft.py --device cuda --dtype bf16 --batch 128 512 --lengths 257 50
"""
SHRINKAGE = 0.01


def literal_fft2(x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor) -> Tensor:
    """The paper's formulation, for x (B, L, D), weights (2, nb, d, d) and biases (2, nb, d), d = D / nb.

    fft2 over (token, block), two complex layers by einsum on real and imaginary parts with ReLU between, softshrink,
    inverse, real part. It computes in float32, or in float64 for such inputs.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    spectrum = torch.fft.fft2(x.to(dtype).unflatten(-1, (BLOCKS, -1)), dim=(1, 2), norm="ortho")  # (B, L, nb, d)
    real, imag = _complex_layer(spectrum.real, spectrum.imag, weight_1, bias_1)
    real, imag = _complex_layer(F.relu(real), F.relu(imag), weight_2, bias_2)
    shrunk = torch.view_as_complex(F.softshrink(torch.stack([real, imag], dim=-1), SHRINKAGE))
    return torch.fft.ifft2(shrunk, dim=(1, 2), norm="ortho").real.flatten(2).to(x.dtype)


def _complex_layer(real: Tensor, imag: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    def times(part: Tensor, matrix: Tensor) -> Tensor:
        return torch.einsum("blni,nio->blno", part, matrix)

    out_real = times(real, weight[0]) - times(imag, weight[1]) + bias[0]
    out_imag = times(real, weight[1]) + times(imag, weight[0]) + bias[1]
    return out_real, out_imag


def make(shape: Shape, device: torch.device, dtype: torch.dtype) -> Workload:
    """Return x (B, L, D), as large as after a norm, and the parameters of both layers, drawn with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    block = shape["dim"] // BLOCKS
    sizes = [(2, BLOCKS, block, block), (2, BLOCKS, block)] * 2
    parameters = [torch.randn(size, generator=generator).mul(0.02).to(device) for size in sizes]
    tokens = (shape["batch"], shape["length"], shape["dim"])
    x, grad = (torch.randn(tokens, generator=generator).to(device, dtype) for _ in range(2))
    return Workload(leaves((x, *parameters)), (True, False, False, False, False), grad)


def contenders(shape: Shape, device: torch.device, dtype: torch.dtype, note: Note) -> list[Contender]:
    """Return our backends that run there, and the literal formulation."""
    found = our_contenders("einfft", einfft, device, dtype, shape["length"])
    return [*found, Contender("literal fft2", literal_fft2, True)]


def ours(shape: Shape, device: torch.device, dtype: torch.dtype) -> str:
    """Return the name of the backend that `auto` takes there."""
    return our_default("einfft", device, dtype, shape["length"])


OPERATOR = Operator("einfft", make, contenders, ours, literal_fft2)
memory_case = functools.partial(operator_memory_case, OPERATOR)


def program(argv: Sequence[str] | None) -> None:
    """Measure the shapes that the command line asks for, and print and write the results."""
    parser = make_parser(__doc__ or "", EXAMPLES)
    add_shape_options(parser, batch=16, lengths=[257, 50], scaling=[])
    parser.set_defaults(batch=[16, 64])
    args, options = parse(parser, argv, {"batch": [2], "lengths": [5], "dim": 16})
    if args.dim % BLOCKS:
        raise UserError(f"--dim {args.dim}: it must be a multiple of the {BLOCKS} blocks of channels")
    report = Report(options)
    measure_lengths(OPERATOR, args, {"dim": args.dim}, options, report)
    report.show()


if __name__ == "__main__":
    sys.exit(run(program))
