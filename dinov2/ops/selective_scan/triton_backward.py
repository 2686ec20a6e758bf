"""The backward kernel of the selective scan: the adjoint recurrence, walked from the last token to the first.

With lambda_t = d loss / d h_t = C_t g_t + exp(delta_{t+1} A) lambda_{t+1} the gradients are sums of lambda_t, h_t and
exp(delta_t A) lambda_t h_{t-1} (arXiv 2312.00752, algorithm 2, differentiated). A turn handles TOKENS tokens: it
recomputes their states from the one that the forward kept last, holds them in registers, then goes backwards over them.
Nothing is written but gradients.

As in the forward a lane owns a channel. Sums over states (for u and delta) stay in its registers; sums over channels
(for B and C) are the only exchange between lanes.
"""
# mypy: disallow-untyped-decorators=False

import triton
import triton.language as tl

from dinov2.ops.selective_scan.triton_math import LN_2, LOG2_E, decay, sigmoid, step_size

TOKENS = tl.constexpr(4)  # tokens whose states are held at once; a divisor of CHUNK


@triton.jit(do_not_specialize=["zero"])
def scan_backward(
    grad_ptr: tl.tensor,
    u_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    A_ptr: tl.tensor,
    B_ptr: tl.tensor,
    C_ptr: tl.tensor,
    D_ptr: tl.tensor,
    z_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    kept_ptr: tl.tensor,
    grad_u_ptr: tl.tensor,
    grad_delta_ptr: tl.tensor,
    grad_A_ptr: tl.tensor,
    grad_B_ptr: tl.tensor,
    grad_C_ptr: tl.tensor,
    grad_D_ptr: tl.tensor,
    grad_z_ptr: tl.tensor,
    grad_bias_ptr: tl.tensor,
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
    CHUNK: tl.constexpr,
    STATES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Write the gradients of u, delta, z (B, L, D), and parts of those of A, B, C, D and the bias.

    The parts are summed afterwards: grad_A (B, N, D), grad_D and grad_bias (B, D) over samples, grad_B and grad_C
    (B, blocks, L, N) over blocks of channels. So no two programs add to one number, and results repeat exactly.
    The grid and the inputs are those of the forward kernel; grad (B, L, D) and all outputs are contiguous.
    """
    blocks = tl.cdiv(channels, BLOCK_D)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    program = tl.program_id(0).to(tl.int64)
    d = (tl.program_id(0) % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    in_d = d < channels
    in_n = n < STATES
    in_nd = in_n[:, None] & in_d[None, :]
    nd = n[:, None] * channels + d[None, :] + zero

    A2 = tl.load(A_ptr + nd, mask=in_nd, other=0.0) * LOG2_E
    bias = tl.zeros([BLOCK_D], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + d, mask=in_d, other=0.0).to(tl.float32)
    skip = tl.zeros([BLOCK_D], tl.float32)
    if HAS_D:
        skip = tl.load(D_ptr + d, mask=in_d, other=0.0).to(tl.float32)

    u_ptr += batch * u_b
    delta_ptr += batch * delta_b
    z_ptr += batch * z_b
    grad_ptr += batch * length * channels
    grad_u_ptr += batch * length * channels
    grad_delta_ptr += batch * length * channels
    grad_z_ptr += batch * length * channels
    B_ptr += batch * length * STATES
    C_ptr += batch * length * STATES
    grad_B_ptr += program * length * STATES
    grad_C_ptr += program * length * STATES
    kept_ptr += batch * tl.cdiv(length, CHUNK) * STATES * channels

    grad_A = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    carried = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)  # exp(delta_{t+1} A) lambda_{t+1}
    grad_D = tl.zeros([BLOCK_D], tl.float32)
    grad_bias = tl.zeros([BLOCK_D], tl.float32)
    turns = tl.cdiv(length, TOKENS)
    for turn in range(0, turns):
        first = ((turns - 1 - turn) * TOKENS).to(tl.int64)
        chunk = first // CHUNK
        state = tl.load(kept_ptr + chunk * STATES * channels + nd, mask=in_nd, other=0.0)
        for ahead in range(0, (first % CHUNK).to(tl.int32), TOKENS):
            for i in tl.static_range(TOKENS):
                t = chunk * CHUNK + ahead + i
                u = tl.load(u_ptr + t * u_l + d, mask=in_d, other=0.0).to(tl.float32)
                delta = tl.load(delta_ptr + t * delta_l + d, mask=in_d, other=0.0)
                B = tl.load(B_ptr + t * STATES + n, mask=in_n, other=0.0)
                step = step_size(delta, bias, True, SOFTPLUS)
                state = decay(step[None, :], A2) * state + (step * u)[None, :] * B[:, None]
        before: tl.tuple = ()
        for i in tl.static_range(TOKENS):
            t = first + i
            here = in_d & (t < length)
            u = tl.load(u_ptr + t * u_l + d, mask=here, other=0.0).to(tl.float32)
            delta = tl.load(delta_ptr + t * delta_l + d, mask=here, other=0.0)
            B = tl.load(B_ptr + t * STATES + n, mask=in_n & (t < length), other=0.0)
            step = step_size(delta, bias, t < length, SOFTPLUS)
            before = before + (state,)  # noqa: RUF005
            state = decay(step[None, :], A2) * state + (step * u)[None, :] * B[:, None]
        for i in tl.static_range(TOKENS - 1, -1, -1):
            t = first + i
            here = in_d & (t < length)
            u = tl.load(u_ptr + t * u_l + d, mask=here, other=0.0).to(tl.float32)
            delta = tl.load(delta_ptr + t * delta_l + d, mask=here, other=0.0)
            step = step_size(delta, bias, t < length, SOFTPLUS)
            B = tl.load(B_ptr + t * STATES + n, mask=in_n & (t < length), other=0.0)
            C = tl.load(C_ptr + t * STATES + n, mask=in_n & (t < length), other=0.0)
            grad = tl.load(grad_ptr + t * channels + d, mask=here, other=0.0).to(tl.float32)
            if HAS_Z:
                z = tl.load(z_ptr + t * z_l + d, mask=here, other=0.0).to(tl.float32)
                gate = sigmoid(z)
                y = tl.sum(state * C[:, None], 0) + skip * u
                grad_z = grad * y * gate * (1.0 + z * (1.0 - gate))
                tl.store(grad_z_ptr + t * channels + d, grad_z.to(grad_z_ptr.dtype.element_ty), mask=here)
                grad = grad * z * gate
            adjoint = C[:, None] * grad[None, :] + carried
            carried = decay(step[None, :], A2) * adjoint
            exponent = carried * before[i]  # d loss / d (delta A)
            grad_C = tl.sum(state * grad[None, :], 1)
            grad_B = tl.sum(adjoint * (step * u)[None, :], 1)
            grad_driven = tl.sum(adjoint * B[:, None], 0)
            grad_step = grad_driven * u + tl.sum(exponent * A2, 0) * LN_2
            grad_u = grad_driven * step + grad * skip
            grad_A += exponent * step[None, :]
            grad_D += grad * u
            if SOFTPLUS:
                grad_step = grad_step * tl.exp2((delta.to(tl.float32) + bias - step) * LOG2_E)  # sigmoid(delta + bias)
            grad_step = tl.where(here, grad_step, 0.0)
            grad_bias += grad_step
            tl.store(grad_u_ptr + t * channels + d, grad_u.to(grad_u_ptr.dtype.element_ty), mask=here)
            tl.store(grad_delta_ptr + t * channels + d, grad_step.to(grad_delta_ptr.dtype.element_ty), mask=here)
            tl.store(grad_B_ptr + t * STATES + n, grad_B, mask=in_n & (t < length))
            tl.store(grad_C_ptr + t * STATES + n, grad_C, mask=in_n & (t < length))
            state = before[i]
    tl.store(grad_A_ptr + batch * STATES * channels + nd, grad_A, mask=in_nd)
    tl.store(grad_D_ptr + batch * channels + d, grad_D, mask=in_d)
    tl.store(grad_bias_ptr + batch * channels + d, grad_bias, mask=in_d)
