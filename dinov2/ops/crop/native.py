"""The pixel work of a crop in C (`crop.c`)."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dinov2.ops import native
from dinov2.ops.native import NativeError

SOURCE = Path(__file__).with_name("crop.c")
OPERATIONS = ("brightness", "contrast", "saturation", "hue", "grayscale")  # their numbers in crop.c


class _Crop(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("size", "steps")),
        *((name, ctypes.c_void_p) for name in ("operation", "factor")),
        ("taps", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("solarize", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("mean", "deviation", "pixels", "planes", "row", "out")),
    )


def finish_crop(
    pixels: Tensor,
    steps: Sequence[tuple[str, float]],
    taps: Tensor | None,
    solarize: bool,
    mean: Tensor,
    std: Tensor,
    out: Tensor,
    scratch: Tensor,
) -> None:
    """Jitter, blur, solarise and normalise a resized crop.

    Args:
        pixels: uint8 (3, S, S), contiguous, on the CPU.
        steps: operations on colour in their order, of OPERATIONS, with their factors.
        taps: (K,) float32, odd K below 2 S, weights of a separable blur with mirrored borders; None: no blur.
        solarize: invert values from 128 / 255 on.
        mean: (3,) float32.
        std: (3,) float32.
        out: float32 (3, S, S), contiguous; receives the result.
        scratch: float32, contiguous, at least 3 * S * S + S + K values, not shared with `out`.

    Raises:
        NativeError: a tensor is not as described, or the kernel cannot be compiled here (see `native.why_not`).
    """
    size, count = out.shape[-1], out.numel()
    n_taps = 0 if taps is None else len(taps)
    if pixels.dtype != torch.uint8 or pixels.shape != out.shape or not pixels.is_contiguous():
        raise NativeError(f"the kernel takes a contiguous uint8 crop of shape {tuple(out.shape)}")
    if scratch.numel() < count + size + n_taps:
        raise NativeError(f"{scratch.numel()} values of scratch memory; {count + size + n_taps} are needed")
    operations = (ctypes.c_int32 * len(steps))(*(OPERATIONS.index(name) for name, _ in steps))
    factors = (ctypes.c_float * len(steps))(*(factor for _, factor in steps))
    planes = native.address(out if taps is None else scratch)
    problem = _Crop(
        size,
        len(steps),
        ctypes.cast(operations, ctypes.c_void_p),
        ctypes.cast(factors, ctypes.c_void_p),
        n_taps,
        native.address(taps),
        int(solarize),
        native.address(mean),
        native.address(std),
        pixels.data_ptr(),
        planes,
        native.address(scratch[count:]),
        native.address(out),
    )
    native.load(SOURCE).crop_finish(ctypes.byref(problem))
