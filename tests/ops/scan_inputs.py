"""Inputs of both scans with all options in use, and the steps and decays that are hard to compute with."""

import torch
from torch import Tensor

# The last pairs mix steps that leave a state as it is with steps after which nothing of it is left.
SCAN_STEPS = ((0.0,), (1e-30,), (1e-30, 1e3), (1e-3, 1e3), (1e4,))
SSD_STEPS = ((0.0,), (1e-30,), (1e-30, 1e3), (1e-3, 1e3), (1e-2, 1e4), (1e4,))
DECAYS = (1e-8, 1.0, 1e6)


def draw_scan(
    batch: int, channels: int, states: int, length: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> dict[str, Tensor]:
    """Return arguments of the selective scan; activations in `dtype`, parameters in float32 or better."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    args = {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": -normal(channels, states).exp(),
        "B": normal(batch, states, length),
        "C": normal(batch, states, length),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "delta_bias": normal(channels),
    }
    return _in_dtype(args, ("u", "delta", "B", "C", "z"), dtype)


def draw_ssd(
    batch: int,
    length: int,
    heads: int,
    channels: int,
    groups: int,
    states: int,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return arguments of state-space duality; activations in `dtype`, steps and parameters in float32 or better."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    args = {
        "x": normal(batch, length, heads, channels),
        "dt": torch.rand(batch, length, heads, generator=g, dtype=torch.float64) + 0.05,
        "A": -normal(heads).exp(),
        "B": normal(batch, length, groups, states),
        "C": normal(batch, length, groups, states),
        "D": normal(heads),
    }
    return _in_dtype(args, ("x", "B", "C"), dtype)


def extreme_scan(steps: tuple[float, ...], decay: float, batch: int = 2, length: int = 70) -> dict[str, Tensor | None]:
    """Return arguments whose steps (taken as they are) are drawn from `steps`, with rates of about `decay`."""
    args = draw_scan(batch, 3, 4, length, torch.float32)
    return {**args, "delta": _pick(steps, args["delta"]), "A": args["A"] * decay, "delta_bias": None}


def extreme_ssd(steps: tuple[float, ...], decay: float, batch: int = 2) -> dict[str, Tensor]:
    """Return arguments whose steps are drawn from `steps`, with rates of about `decay`."""
    args = draw_ssd(batch, 70, 2, 3, 1, 4, torch.float32)
    return args | {"dt": _pick(steps, args["dt"]), "A": args["A"] * decay}


def one_large_step() -> dict[str, Tensor]:
    """Return arguments of state-space duality where small steps follow on a large one.

    Differences of a running sum would lose them: 1e5 + 0.01 is known to 0.008 in float32.
    """
    args = draw_ssd(1, 40, 2, 3, 1, 4, torch.float32)
    args["dt"] = torch.full_like(args["dt"], 0.01)
    args["dt"][:, 5] = 1e5
    args["x"][:, 5] = 0
    return args


def _pick(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values)[torch.randint(len(values), like.shape, generator=torch.Generator().manual_seed(2))]


def _in_dtype(args: dict[str, Tensor], activations: tuple[str, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    parameters = torch.promote_types(dtype, torch.float32)
    return {name: tensor.to(dtype if name in activations else parameters) for name, tensor in args.items()}
