"""Other selective scans, over u and delta (B, L, D), A (D, N), B and C (B, L, N), D and bias (D,).

All compute h_t = exp(s_t A) h_{t-1} + s_t B_t u_t and y_t = C_t h_t + D u_t with s = softplus(delta + bias)
(arXiv 2312.00752, algorithm 2) and return y (B, L, D).
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def exact_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """The recurrence as it is written, token by token; meant for float64. Linear in the length, also backwards."""
    step = F.softplus(delta + bias)
    state = u.new_zeros(u.shape[0], *A.shape)  # (B, D, N)
    outputs = []
    for s, x, b, c in zip(step.unbind(1), u.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        state = torch.exp(s[..., None] * A) * state + (s * x)[..., None] * b[:, None]
        outputs.append((state @ c[..., None]).squeeze(-1))  # (B, D)
    return torch.stack(outputs, dim=1) + D * u


def literal_loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """The form of mamba-ssm's reference: the whole sequence is discretised, then a loop indexes it in time.

    It works in float32 on (B, D, L, N) tensors; autograd differentiates it.
    """
    inputs, B, C = u.float().transpose(1, 2), B.float().transpose(1, 2), C.float().transpose(1, 2)
    step = F.softplus(delta.float().transpose(1, 2) + bias[:, None])  # (B, D, L)
    decay = torch.exp(torch.einsum("bdl,dn->bdln", step, A))  # (B, D, L, N)
    drive = torch.einsum("bdl,bnl,bdl->bdln", step, B, inputs)  # (B, D, L, N)
    state = torch.zeros_like(drive[:, :, 0])
    outputs = []
    for t in range(u.shape[1]):
        state = decay[:, :, t] * state + drive[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, :, t]))
    y = torch.stack(outputs, dim=2) + D[:, None] * inputs  # (B, D, L)
    return y.transpose(1, 2).to(u.dtype)


def mambapy_scan() -> Callable[..., Tensor]:
    """Return the scan of the package mambapy: its `pscan` with the discretisation that its block has around it.

    Raises:
        ImportError: mambapy is not installed.
    """
    pscan = importlib.import_module("mambapy.pscan").pscan

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
        inputs, step = u.float(), F.softplus(delta.float() + bias)
        decay = torch.exp(step[..., None] * A)  # (B, L, D, N)
        drive = step[..., None] * B.float()[:, :, None] * inputs[..., None]  # (B, L, D, N)
        states = pscan(decay, drive)  # (B, L, D, N)
        y = (states @ C.float()[..., None]).squeeze(-1) + D * inputs
        return y.to(u.dtype)

    return scan


class _MambaKernels(torch.autograd.Function):
    """mamba-ssm's compiled forward and backward, over (B, D, L) and (B, 1, N, L) with time contiguous."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        u, delta, A, B, C, D, bias = inputs
        y, states = importlib.import_module("selective_scan_cuda").fwd(u, delta, A, B, C, D, None, bias, True)
        ctx.save_for_backward(*inputs, states)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        *inputs, bias, states = ctx.saved_tensors
        kernel = importlib.import_module("selective_scan_cuda").bwd
        return tuple(kernel(*inputs, None, bias, grads[0].contiguous(), states, None, None, True, False))


def mamba_ssm_scan() -> Callable[..., Tensor]:
    """Return mamba-ssm's scan for inputs (B, L, D); copies to its layout, where needed, belong to it.

    Raises:
        ImportError: the extension `selective_scan_cuda` is not installed.
    """
    importlib.import_module("selective_scan_cuda")

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
        u, delta, B, C = (tensor.transpose(1, 2).contiguous() for tensor in (u, delta, B, C))
        y = _MambaKernels.apply(u, delta, A, B.unsqueeze(1), C.unsqueeze(1), D, bias)  # (B, D, L)
        return y.transpose(1, 2)

    return scan
