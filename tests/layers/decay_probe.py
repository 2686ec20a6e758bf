"""Reading off, from the outside, the factors by which a scan really multiplies its state."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor, nn

from dinov2.ops import selective_scan, ssd
from dinov2.ops.dispatch import usable_backends

SCANS = {
    "selective_scan": ("dinov2.layers.scan.selective_scan", selective_scan),
    "ssd": ("dinov2.layers.hydra.ssd", ssd),
}


@dataclass(frozen=True)
class Call:
    """What a layer gave to an operator that decides its decay."""

    operator: str
    delta: Tensor  # (B, D, L), or (B, L, H) for ssd
    A: Tensor  # (D, N) or (H,)
    delta_bias: Tensor | None
    delta_softplus: bool


@contextmanager
def recorded_calls() -> Iterator[list[Call]]:
    """Collect the calls that layers make to the scans meanwhile."""
    calls: list[Call] = []

    def spy(operator, function):
        def wrapper(u, delta, A, *args, delta_bias=None, delta_softplus=False, **options):
            bias = None if delta_bias is None else delta_bias.detach().clone()
            calls.append(Call(operator, delta.detach().clone(), A.detach().clone(), bias, delta_softplus))
            if operator == "selective_scan":
                options |= {"delta_bias": delta_bias, "delta_softplus": delta_softplus}
            return function(u, delta, A, *args, **options)

        return wrapper

    targets = [patch(path, spy(operator, function)) for operator, (path, function) in SCANS.items()]
    for target in targets:
        target.start()
    try:
        yield calls
    finally:
        for target in targets:
            target.stop()


def backends_of(call: Call) -> list[str]:
    """Return our backends that can run such a call where it was made (the vendors' do not bound exponents)."""
    states = call.A.shape[1] if call.A.ndim == 2 else 1
    usable = usable_backends(call.operator, call.delta.device.type, call.delta.dtype, states)
    return [backend for backend in usable if backend != "vendor"]


@torch.no_grad()
def states_around_a_step(call: Call, backend: str) -> tuple[Tensor, Tensor]:
    """Return every state before and after each of the call's steps without input, (M, D, N) or (M, H).

    A scan of two tokens: the first fills the state, the second, whose step is one of the call's, has no input. The
    decay is after / before, and no rounding hides it: before is positive, and after is the nearest number to
    decay * before, so that after < before if and only if the decay is less than 1 in the dtype of the state.
    """
    if call.operator == "ssd":
        return _around_ssd(call, backend)
    steps = call.delta.transpose(1, 2).flatten(0, 1)  # (M, D)
    fill = torch.full_like(steps, 10.0)
    if call.delta_bias is not None:
        fill = fill - call.delta_bias  # whatever the bias, the first step is 10
    u = torch.stack([torch.ones_like(steps), torch.zeros_like(steps)], dim=2)  # (M, D, 2)
    delta = torch.stack([fill, steps], dim=2)
    count, states = len(steps), call.A.shape[1]
    before, after = [], []
    for n in range(states):
        pick = steps.new_zeros(count, states, 2)
        pick[:, n] = 1
        y = selective_scan(
            u,
            delta,
            call.A,
            pick,
            pick,
            delta_bias=call.delta_bias,
            delta_softplus=call.delta_softplus,
            backend=backend,
        )
        before.append(y[..., 0])
        after.append(y[..., 1])
    return torch.stack(before, dim=2), torch.stack(after, dim=2)


def _around_ssd(call: Call, backend: str) -> tuple[Tensor, Tensor]:
    steps = call.delta.flatten(0, 1)  # (M, H)
    dt = torch.stack([torch.ones_like(steps), steps], dim=1)  # (M, 2, H)
    x = torch.stack([torch.ones_like(steps), torch.zeros_like(steps)], dim=1).unsqueeze(3)  # (M, 2, H, 1)
    ones = steps.new_ones(len(steps), 2, 1, 1)
    y = ssd(x, dt, call.A, ones, ones, backend=backend)
    return y[:, 0, :, 0], y[:, 1, :, 0]


def assert_every_state_decays(calls: list[Call], backends: list[str] | None = None) -> None:
    """Check 0 < exp(delta A) < 1 for all steps, channels and states of the calls, in `backends` or all that can run."""
    for call in calls:
        assert torch.isfinite(call.A).all()
        assert (call.A < 0).all()
        for backend in backends or backends_of(call):
            before, after = states_around_a_step(call, backend)
            assert (before > 0).all()
            gone, kept = (after <= 0).sum().item(), (after >= before).sum().item()
            assert gone == kept == 0, f"{backend}: {gone} decays are 0, {kept} are 1 of {after.numel()}"


def scans_of(model: nn.Module) -> list[nn.Module]:
    """Return the modules that hold a scan's parameters."""
    return [module for module in model.modules() if hasattr(module, "A_log")]
