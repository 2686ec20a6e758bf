"""The backbones on a GPU, with whatever kernels are chosen there, against the same weights in float64 on the CPU."""

import pytest
import torch

from dinov2.models import build_backbone
from dinov2.ops.dispatch import forced, usable_backends

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
BACKBONES = ("vit12", "vit24", "vim_einfft", "hydra_einfft", "hydra_hybrid", "mvhybrid")


def run(model, images, autocast=False):
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        out = model.forward_features(images)["x_prenorm"]
    out.square().mean().backward()
    return out.detach().double().cpu(), {
        n: p.grad.double().cpu() for n, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("name", BACKBONES)
def test_outputs_and_gradients_are_those_of_float64(name, autocast):
    torch.manual_seed(0)
    model = build_backbone(name, depth=4).train()
    images = torch.randn(2, 3, 256, 256)
    expected, gradients = run(model.double(), images.double())
    found, found_gradients = run(model.float().cuda(), images.cuda(), autocast)
    tolerance = 0.05 if autocast else 1e-3
    assert (found - expected).norm() < tolerance * expected.norm()
    for parameter, gradient in gradients.items():
        assert (found_gradients[parameter] - gradient).norm() < 3 * tolerance * gradient.norm() + 1e-6, parameter


@pytest.mark.parametrize("operator", ["selective_scan", "ssd", "conv_silu"])
def test_the_vendors_kernels_give_the_same(operator):
    if "vendor" not in usable_backends(operator, "cuda", size=4 if operator == "conv_silu" else 16):
        pytest.skip(f"the vendor's kernel of {operator} is not installed")
    name = "hydra_einfft" if operator == "ssd" else "vim_einfft"
    torch.manual_seed(0)
    model = build_backbone(name, depth=2).train().cuda()
    images = torch.randn(2, 3, 64, 64, device="cuda")
    expected, gradients = run(model, images)
    with forced(**{operator: "vendor"}):
        found, found_gradients = run(model, images)
    assert (found - expected).norm() < 1e-3 * expected.norm()
    for parameter, gradient in gradients.items():
        assert (found_gradients[parameter] - gradient).norm() < 1e-2 * gradient.norm() + 1e-6, parameter
