"""Which derivatives the operators have: backward ones of the first order; others are refused, not wrong."""

import pytest
import torch
from torch.autograd import forward_ad

from dinov2.ops import conv_silu, einfft, selective_scan, ssd
from dinov2.ops.dispatch import usable_backends

r = torch.randn
ARGUMENTS = {
    "selective_scan": (selective_scan, lambda: (r(2, 3, 5), r(2, 3, 5), -torch.rand(3, 4), r(2, 4, 5), r(2, 4, 5))),
    "ssd": (ssd, lambda: (r(2, 5, 2, 3), torch.rand(2, 5, 2), -torch.rand(2), r(2, 5, 1, 4), r(2, 5, 1, 4))),
    "einfft": (einfft, lambda: (r(2, 5, 8), r(2, 4, 2, 2), r(2, 4, 2), r(2, 4, 2, 2), r(2, 4, 2))),
    "conv_silu": (conv_silu, lambda: (r(2, 5, 3), r(3, 1, 4), r(3), 1)),
}
OF_AUTOGRAD = {"reference", "doubling", "quadratic", "plain"}  # differentiated by PyTorch, to any order
CASES = [(name, backend) for name in ARGUMENTS for backend in usable_backends(name)]


@pytest.mark.parametrize(("operator", "backend"), CASES)
def test_second_derivatives_are_right_or_refused(operator, backend):
    function, make = ARGUMENTS[operator]
    torch.manual_seed(0)
    x, *rest = make()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(function(x, *rest, backend=backend).square().sum(), x, create_graph=True)
    if backend in OF_AUTOGRAD:
        gradient.square().sum().backward()
        assert x.grad.isfinite().all()
    else:
        with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad|autograd"):
            gradient.square().sum().backward()


@pytest.mark.parametrize(("operator", "backend"), CASES)
def test_a_tangent_is_refused(operator, backend):
    function, make = ARGUMENTS[operator]
    x, *rest = make()
    with forward_ad.dual_level(), pytest.raises(ValueError, match=f"{operator}: .* carries a tangent"):
        function(forward_ad.make_dual(x, torch.ones_like(x)), *rest, backend=backend)
