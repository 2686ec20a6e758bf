"""State-space duality by chunks in plain PyTorch, with its gradient written out (section 6 of arXiv 2405.21060).

Within a chunk the scan is a masked attention, y = (decay * (C B^T)) V with V = dt x; states go from chunk to chunk. The
heads of a group share B and C: beside one another they are one matrix product. The cost is linear in the length.

The gradient of a step's dt A is the sum over all pairs of tokens that the step lies between, added up as such: shorter
ways, by differences of sums over tokens, subtract large numbers where decays are small.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dinov2.ops.decay import log_decay


class Chunks(NamedTuple):
    """A scan's inputs in K chunks of c tokens, 0 beyond the end: G groups of R heads, P channels, N states."""

    driven: Tensor  # V = dt x, (B, K, c, G, R, P)
    keys: Tensor  # B, (B, K, G, c, N)
    queries: Tensor  # C, (B, K, G, c, N)
    total: Tensor  # T, the running sum of dt A within the chunk, (B, K, c, G, R), in float64

    def from_start(self) -> Tensor:
        """Return exp(T), the decay since before the chunk's first token (B, K, c, G, R)."""
        return self.total.exp().to(self.driven.dtype)

    def to_end(self) -> Tensor:
        """Return the decay from each token to its chunk's end (B, K, c, G, R)."""
        return (self.total[:, :, -1:] - self.total).exp().to(self.driven.dtype)


class Gradients(NamedTuple):
    """The gradients of `Chunks`, in its shapes, but of dt A itself instead of its running sum."""

    driven: Tensor
    keys: Tensor
    queries: Tensor
    steps: Tensor


def ssd_chunked(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int = 64) -> Tensor:
    """Return y (B, L, H, P) for x (B, L, H, P), dt (B, L, H), A (H,), B and C (B, L, G, N)."""
    if torch.is_grad_enabled():
        return _ChunkedSSD.apply(x, dt, A, B, C, chunk_size)
    return _forward(_split(x, dt, A, B, C, chunk_size))[0].flatten(1, 2)[:, : x.shape[1]].flatten(2, 3)


class _ChunkedSSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int) -> Tensor:
        chunks = _split(x, dt, A, B, C, chunk_size)
        y, entering = _forward(chunks)
        ctx.save_for_backward(x, dt, A, entering, *chunks)
        return y.flatten(1, 2)[:, : x.shape[1]].flatten(2, 3)  # (B, L, H, P)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # A compiled backward is traced under the autocast of its forward.
        with torch.autocast(grad.device.type, enabled=False):
            return _ChunkedSSD._gradients(ctx, grad)

    @staticmethod
    def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, entering, *chunked = ctx.saved_tensors
        chunks = Chunks(*chunked)
        length, (_, count, size) = x.shape[1], chunks.driven.shape[:3]

        def tokens(tensor: Tensor) -> Tensor:  # (B, K, c, ...) to (B, L, ...)
            return tensor.flatten(1, 2)[:, :length]

        grads = _chunked(grad, count, size).unflatten(3, chunks.driven.shape[3:5])  # (B, K, c, G, R, P)
        grad_driven, grad_keys, grad_queries, grad_steps = _backward(chunks, entering, grads)
        of_x = tokens(grad_driven).flatten(2, 3)  # (B, L, H, P)
        grad_step = tokens(grad_steps).flatten(2, 3)  # (B, L, H)
        return (
            of_x * dt.unsqueeze(-1),
            (x * of_x).sum(-1) + grad_step * A,
            (grad_step * dt).sum((0, 1)),
            tokens(grad_keys.transpose(2, 3)),
            tokens(grad_queries.transpose(2, 3)),
            None,
        )


def _split(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int) -> Chunks:
    length = int(x.shape[1])  # a tensor while a graph is traced
    count = max(round(length / chunk_size), 1)  # near the wanted size, with little padding
    size = -(-length // count)
    heads = (B.shape[2], -1)
    driven = _chunked(x * dt.unsqueeze(-1), count, size).unflatten(3, heads)
    keys, queries = (_chunked(t, count, size).transpose(2, 3).contiguous() for t in (B, C))
    # In float64, since differences of the running sum must keep small steps after a large one.
    total = _chunked(log_decay(dt.double(), A.double()), count, size).cumsum(2).unflatten(3, heads)
    return Chunks(driven, keys, queries, total)


def _chunked(tensor: Tensor, count: int, size: int) -> Tensor:
    """Return (B, K, c, ...) for (B, L, ...), 0 beyond the end."""
    padding = count * size - int(tensor.shape[1])
    return F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, padding)).unflatten(1, (count, size))


def _forward(chunks: Chunks) -> tuple[Tensor, Tensor]:
    """Return y (B, K, c, G, R, P) and the states that enter the second and later chunks (B, K - 1, G, N, R P)."""
    driven, keys, queries, _ = chunks
    weights = _decay(chunks).mul_((queries @ keys.transpose(3, 4)).unsqueeze(3))  # W, (B, K, G, R, c, c)
    within = weights @ _head_first(driven)  # (B, K, G, R, c, P)
    entering = _entering_states(chunks)
    y = within.permute(0, 1, 4, 2, 3, 5).contiguous()  # (B, K, c, G, R, P)
    if entering.shape[1]:
        through = queries[:, 1:] @ entering  # (B, K - 1, G, c, R P)
        y[:, 1:].addcmul_(_token_first(through, driven), chunks.from_start()[:, 1:].unsqueeze(5))
    return y, entering


def _entering_states(chunks: Chunks) -> Tensor:
    driven, keys, *_ = chunks
    made = keys[:, :-1].transpose(3, 4) @ _group_first(_to_end(chunks))  # (B, K - 1, G, N, R P)
    kept = _per_channel(chunks.from_start()[:, :, -1], driven)
    for k in range(1, made.shape[1]):
        made[:, k].addcmul_(kept[:, k], made[:, k - 1])
    return made


def _backward(chunks: Chunks, entering: Tensor, grads: Tensor) -> Gradients:
    driven, keys, queries, _ = chunks
    attention = (queries @ keys.transpose(3, 4)).unsqueeze(3)  # (B, K, G, 1, c, c)
    weights = _decay(chunks)
    head_grads = _head_first(grads)  # (B, K, G, R, c, P)
    products = (head_grads @ _head_first(driven).transpose(4, 5)).mul_(weights)
    grad_attention = products.sum(3)  # (B, K, G, c, c)
    within = weights.mul_(attention).transpose(4, 5) @ head_grads  # (B, K, G, R, c, P)
    lower = torch.ones_like(products[0, 0, 0, 0]).tril()  # (c, c)
    across = (products.mul_(attention) @ lower.t().triu(1)).mul_(lower)  # at [i, t]: sum over j < t <= i
    gradients = Gradients(
        within.permute(0, 1, 4, 2, 3, 5).contiguous(),
        grad_attention.transpose(3, 4) @ queries,
        grad_attention @ keys,
        across.sum(4).movedim(4, 2).contiguous(),
    )
    if entering.shape[1]:
        _backward_between_chunks(chunks, entering, grads, gradients)
    return gradients


def _backward_between_chunks(chunks: Chunks, entering: Tensor, grads: Tensor, gradients: Gradients) -> None:
    """Add what goes through the states between chunks."""
    driven, keys, queries, _ = chunks
    from_start = grads[:, 1:] * chunks.from_start()[:, 1:].unsqueeze(5)  # (B, K - 1, c, G, R, P)
    grad_state = queries[:, 1:].transpose(3, 4) @ _group_first(from_start)  # of those that enter, (B, K - 1, G, N, R P)
    kept = _per_channel(chunks.from_start()[:, :, -1], driven)
    carried = torch.zeros_like(grad_state)  # <S, dS> where a state crosses a whole chunk
    for k in range(grad_state.shape[1] - 1, 0, -1):
        grad_state[:, k - 1].addcmul_(kept[:, k], grad_state[:, k])
        torch.mul(kept[:, k] * entering[:, k - 1], grad_state[:, k], out=carried[:, k])
    to_end = _to_end(chunks)
    gradients.queries[:, 1:] += _group_first(from_start) @ entering.transpose(3, 4)
    gradients.keys[:, :-1] += _group_first(to_end) @ grad_state.transpose(3, 4)
    back = _token_first(keys[:, :-1] @ grad_state, driven)  # (B, K - 1, c, G, R, P)
    gradients.driven[:, :-1].addcmul_(back, chunks.to_end()[:, :-1].unsqueeze(5))

    arrived = (_token_first(queries[:, 1:] @ entering, driven) * from_start).sum(5)  # (B, K - 1, c, G, R)
    left = (back * to_end).sum(5)
    crossed = carried.sum(3).unflatten(3, driven.shape[4:]).sum(4).unsqueeze(2)  # (B, K - 1, 1, G, R)
    gradients.steps[:, 1:] += arrived.flip(2).cumsum(2).flip(2)  # a token that hears of earlier chunks: steps up to it
    gradients.steps[:, :-1] += crossed
    gradients.steps[:, :-1, 1:] += left.cumsum(2)[:, :, :-1]  # a token heard of later: the steps after it


def _decay(chunks: Chunks) -> Tensor:
    """Return exp(T_i - T_j) for j <= i, else 0: (B, K, G, R, c, c)."""
    total = chunks.total.movedim(2, 4)  # (B, K, G, R, c)
    size = total.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=total.device).triu(1)
    distance = chunks.driven.new_empty(*total.shape, size)
    torch.sub(total.unsqueeze(-1), total.unsqueeze(-2), out=distance)
    return distance.masked_fill_(later, float("-inf")).exp_()


def _to_end(chunks: Chunks) -> Tensor:
    """Return V times the decay from each token to its chunk's end, of all chunks but the last."""
    return chunks.driven[:, :-1] * chunks.to_end()[:, :-1].unsqueeze(5)


def _head_first(tensor: Tensor) -> Tensor:
    """Return (B, K, G, R, c, P) for (B, K, c, G, R, P)."""
    return tensor.permute(0, 1, 3, 4, 2, 5)


def _group_first(tensor: Tensor) -> Tensor:
    """Return (B, K, G, c, R P) for (B, K, c, G, R, P)."""
    return tensor.flatten(4, 5).transpose(2, 3)


def _token_first(tensor: Tensor, like: Tensor) -> Tensor:
    """Return (B, K, c, G, R, P) for (B, K, G, c, R P)."""
    return tensor.transpose(2, 3).unflatten(4, like.shape[4:])


def _per_channel(tensor: Tensor, like: Tensor) -> Tensor:
    """Return (B, K, G, 1, R P) for one value a head (B, K, G, R)."""
    return tensor.repeat_interleave(like.shape[5], dim=3).unsqueeze(3)
