"""The mixers' short convolution, depthwise and causal, then SiLU: our backends, PyTorch's convolution, and
causal-conv1d's CUDA kernels where they are installed.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

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

from dinov2.ops import conv_silu

EXAMPLES = """\
  python scripts/bench/conv_silu.py --json conv_silu.json
  python scripts/bench/conv_silu.py --device cuda --dtype bf16 --batch 128 512 --lengths 257 50
"""


def torch_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve x (B, L, D) over its tokens with weight (D, 1, W) and bias (D,) by `conv1d`; returns (B, L, D)."""
    padded = F.pad(x.mT, (weight.shape[-1] - 1, 0))
    return F.silu(F.conv1d(padded, weight.to(x.dtype), bias.to(x.dtype), groups=x.shape[-1])).mT


class _Kernels(torch.autograd.Function):
    """causal-conv1d's forward and backward over (B, D, L), in whichever memory layout they come."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        x, weight, bias = inputs
        out = torch.empty_like(x)
        importlib.import_module("causal_conv1d_cuda").causal_conv1d_fwd(x, weight, bias, None, None, out, None, True)
        ctx.save_for_backward(*inputs)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        x, weight, bias = ctx.saved_tensors
        out = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
        kernel = importlib.import_module("causal_conv1d_cuda").causal_conv1d_bwd
        kernel(x, weight, bias, grads[0], None, None, None, *out, None, True)
        return out


def causal_conv1d() -> Callable[..., Tensor]:
    """Return causal-conv1d's convolution; its kernels read channels-last memory as it is.

    Raises:
        ImportError: the extension `causal_conv1d_cuda` is not installed.
    """
    importlib.import_module("causal_conv1d_cuda")
    return lambda x, weight, bias: _Kernels.apply(x.mT, weight.squeeze(1), bias).mT


def make(shape: Shape, device: torch.device, dtype: torch.dtype) -> Workload:
    """Return x (B, L, D), weight (D, 1, W) and bias (D,), drawn with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    size = (shape["batch"], shape["length"], shape["dim"])
    x, grad = (torch.randn(size, generator=generator).to(device, dtype) for _ in range(2))
    weight = (torch.randn(shape["dim"], 1, shape["width"], generator=generator) / 2).to(device)
    return Workload(leaves((x, weight, torch.zeros(shape["dim"], device=device))), (True, False, False), grad)


def contenders(shape: Shape, device: torch.device, dtype: torch.dtype, note: Note) -> list[Contender]:
    """Return our backends that run there, then the peers that are installed."""
    found = our_contenders("conv_silu", _ours, device, dtype, shape["width"], shape["dim"])
    found.append(Contender("torch conv1d", torch_conv, True))
    if device.type == "cuda":
        try:
            found.append(Contender("causal-conv1d", causal_conv1d(), True))
        except ImportError as error:
            note(f"causal-conv1d is left out ({error}); `python scripts/bench/gpu.py --build-peers` builds it")
    return found


def ours(shape: Shape, device: torch.device, dtype: torch.dtype) -> str:
    """Return the name of the backend that `auto` takes there."""
    return our_default("conv_silu", device, dtype, shape["width"], shape["dim"])


def _ours(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str) -> Tensor:
    return conv_silu(x, weight.to(x.dtype), bias.to(x.dtype), weight.shape[-1] - 1, backend)


OPERATOR = Operator("conv_silu", make, contenders, ours, torch_conv)
memory_case = functools.partial(operator_memory_case, OPERATOR)


def program(argv: Sequence[str] | None) -> None:
    """Measure the shapes that the command line asks for, and print and write the results."""
    parser = make_parser(__doc__ or "", EXAMPLES)
    add_shape_options(parser, batch=8, lengths=[50, 257], scaling=[])
    parser.add_argument("--width", type=int, default=4, help="of the filters; default: 4")
    args, options = parse(parser, argv, {"batch": [2], "lengths": [5], "dim": 16})
    report = Report(options)
    measure_lengths(OPERATOR, args, {"dim": args.dim, "width": args.width}, options, report)
    report.show()


if __name__ == "__main__":
    sys.exit(run(program))
