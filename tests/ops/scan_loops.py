"""Both scans as float64 loops over time, differentiable by autograd, and what the tests of every backend share."""

import torch
from torch import Tensor

from dinov2.ops import dispatch, selective_scan, ssd  # noqa: F401  (importing the operators registers their backends)

LENGTHS = (1, 2, 7, 50, 257, 1025)
STATES = (1, 8, 16, 64)
# What rounding to a dtype adds to a relative error: half a unit in the last place.
HALF_ULP = {torch.float64: 0.0, torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
# Sums over a thousand steps in float32 were seen to be off by up to 6e-6 of the largest entry.
ACCUMULATED = {torch.float64: 1e-10, torch.float32: 5e-5, torch.float16: 5e-5, torch.bfloat16: 5e-5}
# What float32 may make of 0: the smallest normal number, about 1e-38, times steps and inputs of up to 1e4 each.
UNDERFLOW = 1e-25


def usable(operator: str, dtype: torch.dtype = torch.float32, states: int = 16) -> list[str]:
    """Return the backends that run such inputs on the CPU."""
    return dispatch.usable_backends(operator, "cpu", dtype, states)


def cases(operator: str, dtypes: tuple[torch.dtype, ...]) -> list[tuple[str, torch.dtype, int, int]]:
    """Return every (backend, dtype, length, states) to test."""
    return [
        (backend, dtype, length, states)
        for length in LENGTHS
        for states in STATES
        for dtype in dtypes
        for backend in usable(operator, dtype, states)
    ]


def selective_scan_loop(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """h_t = exp(step_t A) h_{t-1} + step_t B_t u_t, y_t = (C_t h_t + D u_t) silu(z_t) in float64 (arXiv 2312.00752)."""
    u, delta, A, B, C = (tensor.double() for tensor in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.double()[None, :, None]
    step = torch.logaddexp(delta, torch.zeros_like(delta)) if delta_softplus else delta
    h = torch.zeros(*u.shape[:2], A.shape[1], dtype=torch.float64)  # (B, D, N)
    columns = []
    for t in range(u.shape[2]):
        dt = step[:, :, t].unsqueeze(-1)  # (B, D, 1)
        h = (dt * A).exp() * h + dt * u[:, :, t].unsqueeze(-1) * B[:, :, t].unsqueeze(1)
        columns.append(torch.einsum("bdn,bn->bd", h, C[:, :, t]))
    y = torch.stack(columns, dim=2)
    if D is not None:
        y = y + D.double()[None, :, None] * u
    if z is not None:
        y = y * z.double() * torch.sigmoid(z.double())
    return y


def ssd_loop(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> Tensor:
    """H_t = exp(dt_t A) H_{t-1} + dt_t x_t B_t^T, y_t = H_t C_t + D x_t in float64 (arXiv 2405.21060)."""
    x, dt, A, B, C = (tensor.double() for tensor in (x, dt, A, B, C))
    heads = x.shape[2]
    group = torch.arange(heads) // (heads // B.shape[2])
    H = torch.zeros(x.shape[0], heads, x.shape[3], B.shape[3], dtype=torch.float64)
    rows = []
    for t in range(x.shape[1]):
        kept = (dt[:, t] * A).exp()[..., None, None]  # (B, H, 1, 1)
        H = kept * H + torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], x[:, t], B[:, t, group])
        rows.append(torch.einsum("bhpn,bhn->bhp", H, C[:, t, group]))
    y = torch.stack(rows, dim=1)
    return y if D is None else y + D.double()[:, None] * x


def with_gradients(function, args: dict[str, Tensor | None], **options) -> dict[str, Tensor]:
    """Return the output of `function(**args)` under "y" and the gradient of a fixed projection of it per argument."""
    leaves = {name: None if t is None else t.detach().requires_grad_() for name, t in args.items()}
    y = function(**leaves, **options)
    projection = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(torch.bfloat16)
    (y * projection.to(y)).sum().backward()
    # A backend may leave out what has no influence: A where there is only one step.
    gradients = {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in leaves.items() if t is not None}
    return {"y": y.detach()} | gradients


def exactly(loop, args: dict[str, Tensor | None], **options) -> dict[str, Tensor]:
    """Return what `with_gradients` gives for one of the loops in float64 on the CPU."""
    return with_gradients(loop, {n: None if t is None else t.double().cpu() for n, t in args.items()}, **options)


def assert_near(actual: Tensor, exact: Tensor, what: str, products: float = 0.0) -> None:
    """Compare to a float64 result, relative to its largest entry, as closely as the dtype of `actual` can say.

    `products` is what products of matrices in a low precision add to the relative error.
    """
    assert actual.shape == exact.shape, what
    relative = HALF_ULP[actual.dtype] + ACCUMULATED[actual.dtype] + products
    bound = relative * exact.abs().max().item() + UNDERFLOW
    error = (actual.double().cpu() - exact).abs().max().item()
    assert error <= bound, f"{what}: off by {error:.3g}, allowed {bound:.3g}"


def assert_all_near(actual: dict[str, Tensor], exact: dict[str, Tensor], products: float = 0.0) -> None:
    """Compare the results of `with_gradients`."""
    assert actual.keys() == exact.keys()
    for name, tensor in actual.items():
        assert_near(tensor, exact[name], name, products)
