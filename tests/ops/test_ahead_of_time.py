"""Triton's kernels compile without a GPU: to machine code for sm_90, within the shared memory of smaller ones."""

import importlib
import shutil
from pathlib import Path

import pytest
import torch
from triton_interpreter import INTERPRETED

from dinov2.ops.selective_scan.backends import TRITON_STATES
from dinov2.ops.ssd.backends import TRITON_SIDES

triton = pytest.importorskip("triton")
ASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
pytestmark = pytest.mark.skipif(
    INTERPRETED or not (ASSEMBLER.exists() or shutil.which("ptxas")),
    reason="Triton runs in its interpreter, or brings no assembler for NVIDIA's GPUs",
)
SHARED = 99 * 1024  # bytes a block may have from sm_86 on
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
LOW = [torch.bfloat16, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float32, torch.float16))]


class Compiler:
    """Takes the place of a kernel, and compiles it for what it is launched with instead of running it."""

    def __init__(self, kernel):
        self.kernel, self.compiled = kernel, []

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *args, **options):
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        names = self.kernel.arg_names
        constants = {name: options.pop(name) for name in names if name in options}
        types = [TYPES[arg.dtype] if isinstance(arg, torch.Tensor) else "i32" for arg in args]
        signature = dict(zip(names, types + ["constexpr"] * len(constants), strict=True))
        source = ASTSource(self.kernel, signature, constants)
        self.compiled.append(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options))


@pytest.fixture
def compile_launches(monkeypatch, tmp_path):
    """Return a function that calls an operator and its backward, and returns both kernels as compiled."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def run(module, names, function, *args):
        compilers = [Compiler(getattr(module, name)) for name in names]
        for name, compiler in zip(names, compilers, strict=True):
            monkeypatch.setattr(module, name, compiler)
        y = function(*(arg.requires_grad_() if isinstance(arg, torch.Tensor) else arg for arg in args))
        y.sum().backward()
        return [kernel for compiler in compilers for kernel in compiler.compiled]

    return run


def check(kernels):
    assert len(kernels) == 2
    for kernel in kernels:
        assert ".target sm_90" in kernel.asm["ptx"]
        assert len(kernel.asm["cubin"]) > 1000
        assert kernel.metadata.shared <= SHARED


@pytest.mark.parametrize("low", LOW, ids=str)
@pytest.mark.parametrize("states", [16, pytest.param(TRITON_STATES, marks=pytest.mark.slow)])
def test_the_selective_scan_compiles(compile_launches, low, states):
    operators = importlib.import_module("dinov2.ops.selective_scan.triton_operators")
    from dinov2.ops.selective_scan.triton_scan import scan_triton

    wide, narrow = torch.zeros(1, 40, 20, dtype=low), torch.zeros(1, states, 20, dtype=low)
    rows = torch.zeros(3, 40)
    args = (wide, wide.clone(), torch.zeros(40, states), narrow, narrow.clone(), rows[0].clone(), wide.clone())
    check(compile_launches(operators, ("scan_forward", "scan_backward"), scan_triton, *args, rows[1].clone(), True))


@pytest.mark.parametrize("low", LOW, ids=str)
@pytest.mark.parametrize(
    ("channels", "states"),
    [(64, 64), *(pytest.param(*sides, marks=pytest.mark.slow) for sides in (TRITON_SIDES, TRITON_SIDES[::-1]))],
)
def test_state_space_duality_compiles(compile_launches, low, channels, states):
    operators = importlib.import_module("dinov2.ops.ssd.triton_ssd")
    x, B = torch.zeros(1, 40, 2, channels, dtype=low), torch.zeros(1, 40, 1, states, dtype=low)
    args = (x, torch.zeros(1, 40, 2), torch.zeros(2), B, B.clone())
    check(compile_launches(operators, ("ssd_forward", "ssd_backward"), operators.ssd_triton, *args))
