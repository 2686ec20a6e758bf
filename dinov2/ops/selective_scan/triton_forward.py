"""The forward kernel of the selective scan (arXiv 2312.00752, algorithm 2): one warp walks one block of channels.

A program owns the (N, BLOCK_D) state of one sample's block of channels in registers, one channel a lane, so that lanes
exchange nothing and wait for nothing. The loads of TOKENS tokens are under way at once, which hides the latency of
memory when there are few programs. The state enters memory once every CHUNK tokens, for the backward. exp(delta A) is
computed as exp2(delta (A log2 e)), the hardware's own function.
"""
# mypy: disallow-untyped-decorators=False

import triton
import triton.language as tl

from dinov2.ops.selective_scan.triton_math import LOG2_E, decay, sigmoid, step_size

TOKENS = tl.constexpr(4)  # tokens of an unrolled turn; a divisor of CHUNK


@triton.jit(do_not_specialize=["zero"])
def scan_forward(
    u_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    A_ptr: tl.tensor,
    B_ptr: tl.tensor,
    C_ptr: tl.tensor,
    D_ptr: tl.tensor,
    z_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    kept_ptr: tl.tensor,
    length: tl.tensor,
    channels: tl.tensor,
    u_b: tl.tensor,
    u_l: tl.tensor,
    delta_b: tl.tensor,
    delta_l: tl.tensor,
    z_b: tl.tensor,
    z_l: tl.tensor,
    zero: tl.tensor,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    KEEP: tl.constexpr,
    CHUNK: tl.constexpr,
    STATES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Write out (B, L, D) and, with KEEP, the states at the start of every chunk (B, ceil(L / CHUNK), N, D).

    The grid is (B * ceil(D / BLOCK_D),), the blocks of a sample next to each other, since they share B and C. u, delta
    and z (B, L, D) have a channel stride of 1 and come with the other two, in elements; A (N, D), B and C (B, L, N), D
    and bias (D,), out and kept are contiguous. `zero` is 0, unknown to the compiler: seeing aligned rows of A, it would
    load four channels a lane, and lanes would then exchange data to get back to one.
    """
    blocks = tl.cdiv(channels, BLOCK_D)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    in_d = d < channels
    in_n = n < STATES
    in_nd = in_n[:, None] & in_d[None, :]
    nd = n[:, None] * channels + d[None, :]

    A = tl.load(A_ptr + zero + nd, mask=in_nd, other=0.0) * LOG2_E
    bias = tl.zeros([BLOCK_D], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + d, mask=in_d, other=0.0).to(tl.float32)
    skip = tl.zeros([BLOCK_D], tl.float32)
    if HAS_D:
        skip = tl.load(D_ptr + d, mask=in_d, other=0.0).to(tl.float32)

    u_ptr += batch * u_b
    delta_ptr += batch * delta_b
    z_ptr += batch * z_b
    B_ptr += batch * length * STATES
    C_ptr += batch * length * STATES
    out_ptr += batch * length * channels
    kept_ptr += batch * tl.cdiv(length, CHUNK) * STATES * channels + zero

    state = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in range(0, length, TOKENS):
        if KEEP and start % CHUNK == 0:
            tl.store(kept_ptr + nd, state, mask=in_nd)
            kept_ptr += STATES * channels
        # All loads of the turn come before its first store: the compiler may not move them across one.
        loaded: tl.tuple = ()
        for i in tl.static_range(TOKENS):
            here = in_d & (start + i < length)
            u = tl.load(u_ptr + i * u_l + d, mask=here, other=0.0)
            delta = tl.load(delta_ptr + i * delta_l + d, mask=here, other=0.0)
            z = u
            if HAS_Z:
                z = tl.load(z_ptr + i * z_l + d, mask=here, other=0.0)
            loaded = loaded + (u, delta, z)  # noqa: RUF005
        outputs: tl.tuple = ()
        for i in tl.static_range(TOKENS):
            valid = start + i < length
            B = tl.load(B_ptr + i * STATES + n, mask=in_n & valid, other=0.0)
            C = tl.load(C_ptr + i * STATES + n, mask=in_n & valid, other=0.0)
            u = loaded[3 * i].to(tl.float32)
            step = step_size(loaded[3 * i + 1], bias, valid, SOFTPLUS)
            state = decay(step[None, :], A) * state + (step * u)[None, :] * B[:, None]
            y = tl.sum(state * C[:, None], 0) + skip * u
            if HAS_Z:
                z = loaded[3 * i + 2].to(tl.float32)
                y = y * z * sigmoid(z)
            outputs = outputs + (y.to(out_ptr.dtype.element_ty),)  # noqa: RUF005
        for i in tl.static_range(TOKENS):
            tl.store(out_ptr + i * channels + d, outputs[i], mask=in_d & (start + i < length))
        u_ptr += TOKENS * u_l
        delta_ptr += TOKENS * delta_l
        z_ptr += TOKENS * z_l
        B_ptr += TOKENS * STATES
        C_ptr += TOKENS * STATES
        out_ptr += TOKENS * channels
