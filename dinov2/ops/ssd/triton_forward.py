"""The forward kernel of state-space duality (arXiv 2405.21060, section 6): one program walks one head of one sample.

A chunk of tokens is a masked attention, the chunks are linked by the state (N, P), which stays in registers. Decays are
exponentials of differences of cumulated log decays, masked before the exponential, so that nothing overflows and
nothing is divided. exp is computed as exp2 of logarithms in base 2.
"""
# mypy: disallow-untyped-decorators=False

import math

import triton
import triton.language as tl

from dinov2.ops.decay import LOWEST

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST_2 = tl.constexpr(LOWEST / math.log(2))


@triton.jit
def chunk_decays(log_decay: tl.tensor, CHUNK: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Return four decays of a chunk from the log2 decays of its tokens (c,).

    between (c, c): from after token j to after token i, 0 for j > i; since_start (c,): up to and with token i;
    to_end (c,): after token j; whole (): over all tokens.
    """
    # In float64, since differences of the running sum must keep small steps after a large one. Between pairs of tokens
    # they are formed from two float32 parts of the sum, with the same digits: float64 is slow on many GPUs.
    log_decay = tl.maximum(log_decay, LOWEST_2).to(tl.float64)
    total = tl.cumsum(log_decay, 0)
    high = total.to(tl.float32)
    low = (total - high.to(tl.float64)).to(tl.float32)
    distance = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
    i = tl.arange(0, CHUNK)
    between = tl.exp2(tl.where(i[:, None] >= i[None, :], distance, float("-inf")))
    whole = tl.sum(log_decay, 0)
    return between, tl.exp2(high), tl.exp2((whole - total).to(tl.float32)), tl.exp2(whole.to(tl.float32))


@triton.jit
def ssd_forward(
    x_ptr: tl.tensor,
    dt_ptr: tl.tensor,
    A_ptr: tl.tensor,
    B_ptr: tl.tensor,
    C_ptr: tl.tensor,
    y_ptr: tl.tensor,
    kept_ptr: tl.tensor,
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
    KEEP: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Write y (B, L, H, P) and, with KEEP, the states at the end of all chunks but the last (B, H, K - 1, N, P).

    The grid is (B * H,). Strides are in elements and named after tensor and axis, those of P and N are 1; y and kept
    are contiguous. DOT is the dtype in which matrices are multiplied, which also keeps the states; PRECISION is the
    rule for float32 ones.
    """
    program = tl.program_id(0).to(tl.int64)
    batch = program // heads
    head = program % heads
    i = tl.arange(0, CHUNK)
    p = tl.arange(0, BLOCK_P)
    n = tl.arange(0, BLOCK_N)
    in_p = p[None, :] < CHANNELS
    in_n = n[None, :] < STATES
    A = tl.load(A_ptr + head).to(tl.float32) * LOG2_E
    x_ptr += batch * x_b + head * x_h
    dt_ptr += batch * dt_b + head * dt_h
    B_ptr += batch * B_b + head // heads_per_group * B_g
    C_ptr += batch * C_b + head // heads_per_group * C_g
    y_ptr += (batch * length * heads + head) * CHANNELS
    chunks = tl.cdiv(length, CHUNK)
    kept_ptr += program * (chunks - 1) * STATES * CHANNELS

    state = tl.zeros([BLOCK_N, BLOCK_P], tl.float32)
    for k in range(0, chunks):
        t = i.to(tl.int64) + k * CHUNK
        here = t < length
        dt = tl.load(dt_ptr + t * dt_l, mask=here, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + t[:, None] * x_l + p[None, :], mask=here[:, None] & in_p, other=0.0).to(DOT)
        B = tl.load(B_ptr + t[:, None] * B_l + n[None, :], mask=here[:, None] & in_n, other=0.0).to(DOT)
        C = tl.load(C_ptr + t[:, None] * C_l + n[None, :], mask=here[:, None] & in_n, other=0.0).to(DOT)
        between, since_start, to_end, whole = chunk_decays(dt * A, CHUNK)
        scores = tl.dot(C, tl.trans(B), input_precision=PRECISION) * between * dt[None, :]  # (c, c)
        y = tl.dot(C, state.to(DOT), input_precision=PRECISION) * since_start[:, None]  # (c, P)
        y += tl.dot(scores.to(DOT), x, input_precision=PRECISION)
        y_ptrs = y_ptr + t[:, None] * heads * CHANNELS + p[None, :]
        tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=here[:, None] & in_p)
        if k + 1 < chunks:
            made = (B.to(tl.float32) * (dt * to_end)[:, None]).to(DOT)
            state = state * whole + tl.dot(tl.trans(made), x, input_precision=PRECISION)
            if KEEP:
                tl.store(
                    kept_ptr + n[:, None] * CHANNELS + p[None, :],
                    state.to(kept_ptr.dtype.element_ty),
                    mask=(n[:, None] < STATES) & in_p,
                )
                kept_ptr += STATES * CHANNELS
