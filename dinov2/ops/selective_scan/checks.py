"""Input rules of the selective scan."""

from torch import Tensor

from dinov2.ops.checks import Rule, check_tensors


def check_inputs(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    """Raise ValueError naming the argument, its shape and the rule when the arguments do not fit together."""
    if u.ndim != 3:
        raise ValueError(f"selective_scan: u has shape {tuple(u.shape)}; expected (batch, channels, length)")
    if A.ndim != 2:
        raise ValueError(f"selective_scan: A has shape {tuple(A.shape)}; expected (channels, states)")
    batch, channels, length = u.shape
    states = A.shape[1]
    if 0 in u.shape or states == 0:
        raise ValueError(f"selective_scan: u {tuple(u.shape)} and A {tuple(A.shape)} must not have an empty axis")
    rules: list[Rule] = [
        ("delta", delta, (batch, channels, length)),
        ("A", A, (channels, states)),
        ("B", B, (batch, states, length)),
        ("C", C, (batch, states, length)),
        ("D", D, (channels,)),
        ("z", z, (batch, channels, length)),
        ("delta_bias", delta_bias, (channels,)),
    ]
    check_tensors("selective_scan", ("u", u), rules)
