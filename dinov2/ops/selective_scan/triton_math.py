"""The scalar functions that the forward and the backward kernel of the selective scan share, in float32."""
# mypy: disallow-untyped-decorators=False

import math

import triton
import triton.language as tl

from dinov2.ops.decay import LOWEST

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
LOWEST_2 = tl.constexpr(LOWEST / math.log(2))


@triton.jit
def softplus(x: tl.tensor) -> tl.tensor:
    """Return log(1 + exp(x)) as max(x, 0) + log1p(exp(-|x|)): no overflow, and accurate where the result is small."""
    w = tl.exp2(-tl.abs(x) * LOG2_E)
    # Below 1/16 the sum 1 + w would round off the digits of w: there the series of log1p, whose next term is w^7 / 7.
    series = 0.2 + w * (-1.0 / 6.0)
    series = -0.25 + w * series
    series = 1.0 / 3.0 + w * series
    series = -0.5 + w * series
    series = w + w * w * series
    return tl.maximum(x, 0.0) + tl.where(w < 0.0625, series, tl.log(1.0 + w))


@triton.jit
def sigmoid(x: tl.tensor) -> tl.tensor:
    """Return 1 / (1 + exp(-x)); exp(-x) may become infinite, the result is then 0."""
    return 1.0 / (1.0 + tl.exp2(-x * LOG2_E))


@triton.jit
def decay(step: tl.tensor, A2: tl.tensor) -> tl.tensor:
    """Return exp(step A) bounded from below; `A2` is A in units of ln 2."""
    return tl.exp2(tl.maximum(step * A2, LOWEST_2))


@triton.jit
def step_size(delta: tl.tensor, bias: tl.tensor, valid: tl.tensor, SOFTPLUS: tl.constexpr) -> tl.tensor:
    """Return the step of a token, 0 where `valid` is false: a step of 0 leaves the state as it is."""
    step = delta.to(tl.float32) + bias
    if SOFTPLUS:
        step = softplus(step)
    return tl.where(valid, step, 0.0)
