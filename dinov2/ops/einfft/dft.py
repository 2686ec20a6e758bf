"""The discrete Fourier transform of L real tokens as one real L x L matrix.

The number of tokens with the CLS token is often a prime (257), where fast transforms lose their advantage. The spectrum
of a real sequence is Hermitian, so that L real numbers hold it: the real parts of the frequencies 0 to L // 2, then the
imaginary parts of 1 to (L - 1) // 2.
"""

import torch
from torch import Tensor

_cache: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}


def half_spectrum_matrix(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix (L, L) that maps L real tokens to their half spectrum, orthonormal in scale (1 / sqrt(L))."""
    length = int(length)  # a tensor while a graph is traced
    key = (length, dtype, device)
    if key in _cache:
        return _cache[key]
    with torch.inference_mode(False), torch.no_grad():
        tokens = torch.arange(length, dtype=torch.float64, device=device)
        cosines = torch.outer(tokens[: length // 2 + 1], tokens)
        sines = torch.outer(tokens[1 : (length + 1) // 2], tokens)
        turn = 2 * torch.pi / length
        # The remainder keeps the angles small, where the functions are exact.
        rows = [torch.cos(turn * cosines.remainder(length)), -torch.sin(turn * sines.remainder(length))]
        matrix = (torch.cat(rows) / length**0.5).to(dtype)
    if type(matrix) is Tensor and not torch.compiler.is_compiling():  # what a tracer hands out must not outlive it
        _cache[key] = matrix
    return matrix
