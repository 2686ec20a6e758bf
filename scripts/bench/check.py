"""Is what is timed right? Outputs and gradients against float64."""

import torch
from common import WrongResultError
from operators import Contender, Function, Workload
from torch import Tensor

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 4e-2}  # of the largest value


def check(contender: Contender, exact: Function, work: Workload, dtype: torch.dtype) -> None:
    """Compare output and gradients of the first and the last sample of the batch with float64.

    The gradient that arrives is zero for all other samples, so that those of shared parameters can be compared too.

    Raises:
        WrongResultError: the largest error is above TOLERANCE[dtype] of the largest value, or a value is not finite.
    """
    samples = sorted({0, work.grad.shape[0] - 1})
    truth_in = [
        (t.detach()[samples] if batched else t.detach()).double().requires_grad_()
        for t, batched in zip(work.inputs, work.batched, strict=True)
    ]
    truth = exact(*truth_in)
    got = contender.function(*work.inputs)
    _compare(contender.name, "output", got.detach()[samples], truth.detach(), dtype)
    if not got.isfinite().all():
        raise WrongResultError(f"{contender.name}: the output holds values that are not finite")
    truth_grads = torch.autograd.grad(truth, truth_in, work.grad[samples].double())
    arriving = torch.zeros_like(work.grad)
    arriving[samples] = work.grad[samples]
    grads = torch.autograd.grad(got, work.inputs, arriving)
    for i, (grad, expected, batched) in enumerate(zip(grads, truth_grads, work.batched, strict=True)):
        _compare(contender.name, f"gradient of input {i}", grad[samples] if batched else grad, expected, dtype)


def _compare(name: str, what: str, value: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    error = float((value.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    if not error <= TOLERANCE[dtype]:
        raise WrongResultError(f"{name}: {what} is off by {error:.2e} of its largest value in float64")
