"""Between tokens and spectra: the two-dimensional transform of EinFFT and its transpose, as matrix products.

`spectrum` takes real tokens (B, L, 4 S) to their complex spectrum over (token, block), laid out for the layers that
follow as (4, B L, 2 S) with the real part before the imaginary part; `signal` is its transpose. With ortho norm the
inverse transform followed by the real part is that transpose, so that each is the other's gradient.

Over the four blocks first: x0 + x1 + x2 + x3 and x0 - x1 + x2 - x3 are real spectra, p - iq and p + iq with p = x0 - x2
and q = x1 - x3 the complex ones ("folding"). Four real sequences then go through one product with the half spectrum
matrix. Last, the symmetry F[-k] = conj F[k] fills the other half ("expanding"). Frequencies lie in the order 0, 1, ...,
L // 2, -1, -2, ...; the layers in between do not care.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from dinov2.ops import native as compiled
from dinov2.ops.einfft.backends import SOURCE


def spectrum(x: Tensor, matrix: Tensor) -> Tensor:
    """Return the spectrum (4, B L, 2 S) of x (B, L, 4 S); `matrix` is `half_spectrum_matrix(L)`."""
    x0, x1, x2, x3 = x.unflatten(-1, (4, -1)).unbind(2)  # (B, L, S)
    even, odd = x0 + x2, x1 + x3
    folded = torch.cat([even + odd, even - odd, x0 - x2, x1 - x3], dim=-1) * 0.5  # (B, L, 4 S)
    half = matrix @ folded  # (B, L, 4 S)
    length = x.shape[1]
    cosines, sines = half.split([length // 2 + 1, (length - 1) // 2], dim=1)
    real = torch.cat([cosines, cosines[:, 1 : 1 + sines.shape[1]]], dim=1)  # (B, L, 4 S)
    imag = torch.cat([_beside(sines, cosines), -sines], dim=1)
    r0, r2, p, q = real.chunk(4, dim=-1)
    i0, i2, p_imag, q_imag = imag.chunk(4, dim=-1)
    full = torch.cat([r0, i0, p + q_imag, p_imag - q, r2, i2, p - q_imag, p_imag + q], dim=-1)  # (B, L, 8 S)
    return full.flatten(0, 1).unflatten(-1, (4, -1)).transpose(0, 1)  # (4, B L, 2 S)


def signal(full: Tensor, matrix: Tensor) -> Tensor:
    """Return the real signal (B, L, 4 S) of a spectrum (4, B L, 2 S)."""
    length = matrix.shape[0]
    parts = full.unflatten(1, (-1, length)).chunk(2, dim=-1)  # (4, B, L, S)
    (r0, r1, r2, r3), (i0, i1, i2, i3) = (part.unbind(0) for part in parts)
    real = torch.cat([r0, r2, r1 + r3, i3 - i1], dim=-1)  # (B, L, 4 S)
    imag = torch.cat([i0, i2, i1 + i3, r1 - r3], dim=-1)
    cosines, mirrored = real.split([length // 2 + 1, (length - 1) // 2], dim=1)
    sines = imag[:, 1 : 1 + mirrored.shape[1]] - imag[:, length // 2 + 1 :]
    half = torch.cat([cosines + _beside(mirrored, cosines), sines], dim=1)  # (B, L, 4 S)
    t0, t1, t2, t3 = (matrix.t() @ half).chunk(4, dim=-1)  # (B, L, S)
    even, odd = t0 + t1, t0 - t1
    return torch.cat([even + t2, odd + t3, even - t2, odd - t3], dim=-1) * 0.5


def _beside(sines: Tensor, cosines: Tensor) -> Tensor:
    """Give `sines` the rows of `cosines`: zeros for frequency 0, and for L / 2 when L is even."""
    return F.pad(sines, (0, 0, 1, cosines.shape[1] - sines.shape[1] - 1))


class _Shape(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("batch", "length", "size"))


@torch.library.custom_op("dinov2::einfft_spectrum", mutates_args=())
def spectrum_native(x: Tensor, matrix: Tensor, mask: Tensor | None, threshold: float) -> Tensor:
    """Return `spectrum(x)` in C; with `mask` (4, B L, 2 S), 0 where the mask lies within +- `threshold`."""
    library, threads = compiled.load(SOURCE), torch.get_num_threads()
    batch, length, width = x.shape
    folded, half, full = torch.empty_like(x), torch.empty_like(x), x.new_empty(4, batch * length, width // 2)
    library.einfft_fold(_int(batch * length), _int(width // 4), _at(x), _at(folded), threads)
    torch.matmul(matrix, folded, out=half)
    library.einfft_expand(
        ctypes.byref(_Shape(batch, length, width // 4)),
        _at(half),
        _at(mask),
        ctypes.c_float(threshold),
        _at(full),
        threads,
    )
    return full


@spectrum_native.register_fake
def _(x: Tensor, matrix: Tensor, mask: Tensor | None, threshold: float) -> Tensor:
    batch, length, width = x.shape
    return x.new_empty(4, batch * length, width // 2)


@torch.library.custom_op("dinov2::einfft_signal", mutates_args=())
def signal_native(full: Tensor, matrix: Tensor, threshold: float) -> Tensor:
    """Return `signal(softshrink(full, threshold))` in C."""
    library, threads = compiled.load(SOURCE), torch.get_num_threads()
    length, size = matrix.shape[0], full.shape[2] // 2
    batch = full.shape[1] // length
    half, folded = (full.new_empty(batch, length, 4 * size) for _ in range(2))
    library.einfft_contract(
        ctypes.byref(_Shape(batch, length, size)), _at(full), ctypes.c_float(threshold), _at(half), threads
    )
    torch.matmul(matrix.t(), half, out=folded)
    library.einfft_unfold(_int(batch * length), _int(size), _at(folded), _at(half), threads)
    return half


@signal_native.register_fake
def _(full: Tensor, matrix: Tensor, threshold: float) -> Tensor:
    length = matrix.shape[0]
    return full.new_empty(full.shape[1] // length, length, 2 * full.shape[2])


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(compiled.address(tensor))


def _int(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)
