"""Attention within the images of a batch, or of a pack of batches of several sizes (see packing.py).

Backends: `xformers`, one memory-efficient kernel over a block-diagonal pack, on a CUDA device where the package is
installed; `sdpa`, PyTorch's scaled_dot_product_attention, one call a size, anywhere.
"""

import importlib
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dinov2.ops.dispatch import Backend, choose_backend, keep_backend, register_backends
from dinov2.ops.packing import Shapes, each_batch


def attention(qkv: Tensor, shapes: Shapes | None = None, backend: str = "auto") -> Tensor:
    """Return softmax(q k^T / sqrt(E)) v of every image and head, for projections (B, N, 3, H, E): (B, N, H, E).

    Args:
        qkv: queries, keys and values of a batch, or of a pack (1, T, 3, H, E).
        shapes: the shapes (B, L) of the batches of a pack.
        backend: `auto`, `xformers` (packs of several sizes only, outside compiled graphs) or `sdpa`.

    Raises:
        BackendError: the backend is unknown or cannot run.
    """
    if shapes is None or len(shapes) == 1:
        return each_batch(_sdpa, qkv, shapes)
    if torch.compiler.is_compiling():
        keep_backend("attention", backend, "sdpa", "a graph holds PyTorch's own operators")
    elif choose_backend("attention", backend, qkv.device.type, qkv.dtype, int(qkv.shape[-1])) == "xformers":
        return _block_diagonal(qkv, shapes)
    return each_batch(_sdpa, qkv, shapes)


def _sdpa(qkv: Tensor) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, N, E)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)  # (B, N, H, E)


def _block_diagonal(qkv: Tensor, shapes: Shapes) -> Tensor:
    """Attend within every image of a pack (1, T, 3, H, E) by one kernel of xFormers."""
    fmha = _xformers()
    lengths = tuple(length for count, length in shapes for _ in range(count))
    q, k, v = qkv.unbind(2)  # each (1, T, H, E)
    return fmha.memory_efficient_attention(q, k, v, attn_bias=_mask(lengths, qkv.device))


@cache
def _mask(lengths: tuple[int, ...], device: torch.device) -> Any:
    """Return the bias that keeps images apart; it holds tensors on the device, copied there once."""
    return _xformers().attn_bias.BlockDiagonalMask.from_seqlens(list(lengths), device=device)


@cache
def _xformers() -> Any:
    return importlib.import_module("xformers.ops.fmha")


@cache
def _why_not() -> str | None:
    try:
        _xformers()
    except Exception as error:  # a missing package, or one built for another version of PyTorch or CUDA
        return f"xFormers cannot be imported ({type(error).__name__}: {error})"
    return None


def _xformers_refusal(device: str, dtype: torch.dtype, width: int) -> str | None:
    if device != "cuda":
        return "it needs a CUDA device"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it has no kernel for {dtype}"
    if width % 8:
        return f"its kernels want heads of a multiple of 8 channels, these have {width}"
    return _why_not()


def _anywhere(device: str, dtype: torch.dtype, width: int) -> None:
    return None


register_backends("attention", (Backend("xformers", _xformers_refusal), Backend("sdpa", _anywhere)))
