"""The selective scan in plain PyTorch, time-major and chunked.

Time comes first in memory, so that one step touches a contiguous (B, N, D) block that stays in cache. The forward keeps
the state only at the start of every chunk; the backward recomputes the states of one chunk at a time, so that memory
grows with L / CHUNK states instead of L. The two halves are custom operators, so that tracing and compiling see one
node where the loop would be thousands.
"""

import torch
from torch import Tensor

from dinov2.ops.decay import LOWEST

CHUNK = 16


def scan_time_major(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> Tensor:
    """Return y (B, D, L) for u, delta (B, D, L), A (D, N), B, C (B, N, L), D (D,), all of one dtype."""
    y, _ = torch.ops.dinov2.selective_scan(
        u.permute(2, 0, 1).contiguous(),  # (L, B, D)
        delta.permute(2, 0, 1).contiguous(),  # (L, B, D)
        A.t().contiguous(),  # (N, D)
        B.permute(2, 0, 1).contiguous(),  # (L, B, N)
        C.permute(2, 0, 1).contiguous(),  # (L, B, N)
    )
    y = y.permute(1, 2, 0)  # (B, D, L)
    return y if D is None else y + D[:, None] * u


@torch.library.custom_op("dinov2::selective_scan", mutates_args=())
def _forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Return y (L, B, D) and the states at the start of every chunk (ceil(L / CHUNK), B, N, D)."""
    length, batch, channels = u.shape
    states = A.shape[0]
    y = torch.empty_like(u)
    kept = u.new_empty(-(-length // CHUNK), batch, states, channels)
    state = u.new_zeros(batch, states, channels)
    decay = torch.empty_like(state)
    step = delta.unsqueeze(2)  # (L, B, 1, D)
    driven = (delta * u).unsqueeze(2)  # (L, B, 1, D)
    for t in range(length):
        if t % CHUNK == 0:
            kept[t // CHUNK].copy_(state)
        torch.mul(step[t], A, out=decay)
        state.mul_(decay.clamp_(min=LOWEST).exp_()).addcmul_(driven[t], B[t].unsqueeze(-1))
        torch.bmm(C[t].unsqueeze(1), state, out=y[t].unsqueeze(1))
    return y, kept


@_forward.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    length, batch, channels = u.shape
    return torch.empty_like(u), u.new_empty(-(-length // CHUNK), batch, A.shape[0], channels)


@torch.library.custom_op("dinov2::selective_scan_backward", mutates_args=())
def _backward(
    grad: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta (L, B, D), A (N, D), B and C (L, B, N) from that of y (L, B, D)."""
    length, batch, channels = u.shape
    states = A.shape[0]
    grad_u, grad_delta = torch.empty_like(u), torch.empty_like(delta)
    grad_B, grad_C = torch.empty_like(B), torch.empty_like(C)
    grad_A = torch.zeros_like(A)
    chunk = min(CHUNK, length)
    state = u.new_empty(chunk + 1, batch, states, channels)
    decay = u.new_empty(chunk, batch, states, channels)
    adjoint = u.new_empty(chunk, batch, states, channels)
    carried = u.new_zeros(batch, states, channels)  # d loss / d state, arriving from the step after
    for index in range(kept.shape[0] - 1, -1, -1):
        span = slice(index * CHUNK, min((index + 1) * CHUNK, length))
        k = span.stop - span.start
        step, inputs = delta[span].unsqueeze(2), u[span].unsqueeze(2)  # (k, B, 1, D)
        driven = step * inputs
        torch.mul(step, A, out=decay[:k])
        decay[:k].clamp_(min=LOWEST).exp_()
        torch.mul(driven, B[span].unsqueeze(-1), out=adjoint[:k])  # borrowed for the inputs to the state
        state[0].copy_(kept[index])
        for i in range(k):
            torch.addcmul(adjoint[i], decay[i], state[i], out=state[i + 1])
        grads = grad[span].unsqueeze(2)  # (k, B, 1, D)
        grad_C[span] = (state[1 : k + 1] @ grads.transpose(-1, -2)).squeeze(-1)
        torch.mul(grads, C[span].unsqueeze(-1), out=adjoint[:k])
        for i in range(k - 1, -1, -1):
            adjoint[i].add_(carried)
            torch.mul(adjoint[i], decay[i], out=carried)
        grad_B[span] = (adjoint[:k] @ driven.transpose(-1, -2)).squeeze(-1)
        grad_driven = B[span].unsqueeze(2) @ adjoint[:k]  # (k, B, 1, D)
        exponent = decay[:k].mul_(state[:k]).mul_(adjoint[:k])  # d loss / d (delta A), (k, B, N, D)
        grad_A += (exponent * step).sum((0, 1))
        grad_delta[span] = ((exponent * A).sum(2, keepdim=True) + grad_driven * inputs).squeeze(2)
        grad_u[span] = (grad_driven * step).squeeze(2)
    return grad_u, grad_delta, grad_A, grad_B, grad_C


@_backward.register_fake
def _(
    grad: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return tuple(torch.empty_like(tensor) for tensor in (u, delta, A, B, C))  # type: ignore[return-value]


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: torch.autograd.function.FunctionCtx, grad_y: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return (None,) * 5
    return tuple(torch.ops.dinov2.selective_scan_backward(grad_y.contiguous(), *ctx.saved_tensors))  # type: ignore[attr-defined]


_forward.register_autograd(_differentiate, setup_context=_save)
