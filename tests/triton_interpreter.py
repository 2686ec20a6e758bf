"""Where Triton's kernels run in tests: on a GPU if there is one, else in Triton's interpreter, in a process of its own.

The interpreter is chosen by an environment variable that must be set before Triton is first imported, hence the other
process. The module also mends, for tests only, what the interpreter of some versions cannot do: read a scalar under
NumPy 2.4, multiply bfloat16 matrices, and round to bfloat16, where it cuts off digits.
"""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available() and not INTERPRETED
HERE = GPU or INTERPRETED  # whether kernels can run in this process
DEVICE = "cuda" if GPU else "cpu"

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)


def run_in_interpreter(path):
    """Run the tests of one file in a new process under the interpreter."""
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", path]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    assert " passed" in done.stdout


def _mend_interpreter():
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor
    multiply = interpreter.InterpreterBuilder.create_dot
    shorten = interpreter.InterpreterBuilder.create_fp_trunc

    def patch_tensor_and_index(tensor, *rest):
        patch_tensor(tensor, *rest)
        tensor.__index__ = lambda self: int(self.handle.data.squeeze())

    def widen(handle):
        if handle.dtype.scalar != interpreter.tl.bfloat16:
            return handle
        bits = handle.data.view(np.uint16).astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), interpreter.tl.float32)

    def multiply_widened(self, a, b, *rest):
        return multiply(self, widen(a), widen(b), *rest)

    def round_to_nearest(self, handle, dtype):
        if dtype.scalar != interpreter.tl.bfloat16:
            return shorten(self, handle, dtype)
        rounded = torch.from_numpy(np.array(handle.data)).bfloat16()
        return interpreter.TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), dtype.scalar)

    interpreter._patch_lang_tensor = patch_tensor_and_index
    interpreter.InterpreterBuilder.create_dot = multiply_widened
    interpreter.InterpreterBuilder.create_fp_trunc = round_to_nearest


if INTERPRETED:
    _mend_interpreter()
