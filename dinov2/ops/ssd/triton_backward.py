"""The backward kernel of state-space duality (arXiv 2405.21060): chunks from last to first, with the adjoint state.

Within a chunk the gradients are those of a masked attention, across chunks they pass through G = d loss / d state. The
gradient of a log decay collects what flows past its token: from later outputs to earlier inputs of the chunk, from
outputs to the state before the chunk, and from G to inputs. Each part is a sum of products, without a quotient or a
difference: where decays are small, a difference of sums would leave only their rounding.
"""
# mypy: disallow-untyped-decorators=False

import triton
import triton.language as tl

from dinov2.ops.ssd.triton_forward import LOG2_E, chunk_decays


@triton.jit
def log_decay_gradient(
    flow: tl.tensor, to_start: tl.tensor, from_end: tl.tensor, whole: tl.tensor, CHUNK: tl.constexpr
) -> tl.tensor:
    """Return d loss / d (log decay of token k) (c,): the sum of all flow that passes token k.

    flow (c, c) goes from output i to input j and passes k for j < k <= i; its diagonal passes nothing. to_start (c,)
    goes from output i to the state before the chunk, from_end (c,) from the state after it to input j, whole () from
    the one to the other.
    """
    i = tl.arange(0, CHUNK)
    arriving = tl.cumsum(flow, 0, reverse=True) + from_end[None, :]  # at [k, j]: from token k on and after the chunk
    passing = tl.sum(tl.where(i[:, None] > i[None, :], arriving, 0.0), 1)
    return passing + tl.cumsum(to_start, 0, reverse=True) + whole


@triton.jit
def ssd_backward(
    grad_ptr: tl.tensor,
    x_ptr: tl.tensor,
    dt_ptr: tl.tensor,
    A_ptr: tl.tensor,
    B_ptr: tl.tensor,
    C_ptr: tl.tensor,
    kept_ptr: tl.tensor,
    grad_x_ptr: tl.tensor,
    grad_dt_ptr: tl.tensor,
    grad_A_ptr: tl.tensor,
    grad_B_ptr: tl.tensor,
    grad_C_ptr: tl.tensor,
    length: tl.tensor,
    heads: tl.tensor,
    heads_per_group: tl.tensor,
    x_b: tl.tensor,
    x_l: tl.tensor,
    x_h: tl.tensor,
    dt_b: tl.tensor,
    dt_l: tl.tensor,
    dt_h: tl.tensor,
    B_b: tl.tensor,
    B_l: tl.tensor,
    B_g: tl.tensor,
    C_b: tl.tensor,
    C_l: tl.tensor,
    C_g: tl.tensor,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Write the gradients of x (B, L, H, P) and dt (B, L, H), and each head's part of those of A, B and C.

    The parts, (B, H) for A and (B, L, H, N) for B and C, are summed afterwards over samples and over the heads of a
    group, so that results repeat exactly. Grid, inputs and options are those of the forward kernel; grad (B, L, H, P)
    and all outputs are contiguous.
    """
    program = tl.program_id(0).to(tl.int64)
    batch = program // heads
    head = program % heads
    i = tl.arange(0, CHUNK)
    p = tl.arange(0, BLOCK_P)
    n = tl.arange(0, BLOCK_N)
    in_p = p[None, :] < CHANNELS
    in_n = n[None, :] < STATES
    A = tl.load(A_ptr + head).to(tl.float32)
    x_ptr += batch * x_b + head * x_h
    dt_ptr += batch * dt_b + head * dt_h
    B_ptr += batch * B_b + head // heads_per_group * B_g
    C_ptr += batch * C_b + head // heads_per_group * C_g
    first = batch * length * heads + head
    chunks = tl.cdiv(length, CHUNK)
    kept_ptr += program * (chunks - 1) * STATES * CHANNELS

    G = tl.zeros([BLOCK_N, BLOCK_P], tl.float32)  # d loss / d state after the chunk
    grad_A = tl.zeros([CHUNK], tl.float32)
    for step in range(0, chunks):
        k = chunks - 1 - step
        t = i.to(tl.int64) + k * CHUNK
        here = t < length
        row = first + t * heads
        dt = tl.load(dt_ptr + t * dt_l, mask=here, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + t[:, None] * x_l + p[None, :], mask=here[:, None] & in_p, other=0.0).to(DOT)
        B = tl.load(B_ptr + t[:, None] * B_l + n[None, :], mask=here[:, None] & in_n, other=0.0).to(DOT)
        C = tl.load(C_ptr + t[:, None] * C_l + n[None, :], mask=here[:, None] & in_n, other=0.0).to(DOT)
        grad = tl.load(grad_ptr + row[:, None] * CHANNELS + p[None, :], mask=here[:, None] & in_p, other=0.0).to(DOT)
        kept = (n[:, None] < STATES) & in_p & (k > 0)
        state = tl.load(
            kept_ptr + (k - 1) * STATES * CHANNELS + n[:, None] * CHANNELS + p[None, :], mask=kept, other=0.0
        ).to(tl.float32)  # (N, P), before the chunk
        between, since_start, to_end, whole = chunk_decays(dt * (A * LOG2_E), CHUNK)
        driven = dt * to_end

        alike = tl.dot(C, tl.trans(B), input_precision=PRECISION)  # (c, c)
        wanted = tl.dot(grad, tl.trans(x), input_precision=PRECISION) * between  # (c, c)
        scores = (alike * between * dt[None, :]).to(DOT)
        grad_x = tl.dot(B, G.to(DOT), input_precision=PRECISION) * driven[:, None]  # (c, P)
        grad_x += tl.dot(tl.trans(scores), grad, input_precision=PRECISION)
        tl.store(
            grad_x_ptr + row[:, None] * CHANNELS + p[None, :],
            grad_x.to(grad_x_ptr.dtype.element_ty),
            mask=here[:, None] & in_p,
        )

        grad_scores = (wanted * dt[None, :]).to(DOT)
        past = tl.dot(grad, tl.trans(state.to(DOT)), input_precision=PRECISION) * since_start[:, None]  # (c, N)
        grad_C = past + tl.dot(grad_scores, B, input_precision=PRECISION)
        future = tl.dot(x, tl.trans(G.to(DOT)), input_precision=PRECISION) * to_end[:, None]  # (c, N)
        grad_B = future * dt[:, None] + tl.dot(tl.trans(grad_scores), C, input_precision=PRECISION)
        tl.store(grad_B_ptr + row[:, None] * STATES + n[None, :], grad_B, mask=here[:, None] & in_n)
        tl.store(grad_C_ptr + row[:, None] * STATES + n[None, :], grad_C, mask=here[:, None] & in_n)

        flow = wanted * alike  # for a dt of 1, (c, c)
        to_inputs = tl.sum(B.to(tl.float32) * future, 1)  # likewise, (c,)
        grad_log = log_decay_gradient(
            flow * dt[None, :],
            tl.sum(C.to(tl.float32) * past, 1),
            to_inputs * dt,
            whole * tl.sum(tl.sum(G * state, 1), 0),
            CHUNK,
        )
        grad_dt = tl.sum(flow, 0) + to_inputs + grad_log * A
        tl.store(grad_dt_ptr + row, grad_dt.to(grad_dt_ptr.dtype.element_ty), mask=here)
        grad_A += grad_log * dt
        left = (C.to(tl.float32) * since_start[:, None]).to(DOT)
        G = G * whole + tl.dot(tl.trans(left), grad, input_precision=PRECISION)
    tl.store(grad_A_ptr + program, tl.sum(grad_A, 0))
