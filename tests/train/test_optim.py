"""Parameter groups: every parameter once, with the multipliers that its name and layer ask for."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dinov2.train.optim import apply_schedule, build_optimizer, has_no_decay, parameter_groups
from dinov2.train.schedules import StepValues
from dinov2.train.ssl_meta_arch import SSLMetaArch
from dinov2.utils.schema import OptimSection


@pytest.fixture(params=["vit12", "vim_einfft", "hydra_hybrid", "mvhybrid"])
def modules(request, small):
    student = {"arch": request.param, "embed_dim": 32, "num_heads": 2, "depth": 2, "layerscale": 1.0}
    return SSLMetaArch(small(student=student)).student


class Operators(TorchDispatchMode):
    """Lists the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    def count(self, name):
        return self.names.count(name)


def found(groups, modules):
    """Map names to (lr multiplier, decay multiplier, is last layer)."""
    names = {p: name for name, p in modules.named_parameters()}
    return {
        names[p]: (group["lr_multiplier"], group["wd_multiplier"], group["is_last_layer"])
        for group in groups
        for p in group["params"]
    }


def test_every_parameter_is_in_exactly_one_group(modules):
    groups = parameter_groups(modules, OptimSection())
    assert sum(len(group["params"]) for group in groups) == len(list(modules.parameters()))
    assert len(found(groups, modules)) == len(list(modules.parameters()))


def test_decay_spares_vectors_tokens_and_scan_parameters(modules):
    for name, (_, decay, _) in found(parameter_groups(modules, OptimSection()), modules).items():
        matrix = name.endswith((".weight", ".weight_v", "weight_g", "complex_weight_1", "complex_weight_2"))
        assert decay == float(matrix and "norm" not in name), name


def test_dinov2_rule_decays_tokens_and_scan_parameters():
    for name in ("backbone.cls_token", "pos_embed", "blocks.0.mixer.scan.A_log", "blocks.0.mixer.scan.D"):
        assert not has_no_decay(name, "dinov2")
        assert has_no_decay(name, "ours")
    for name in ("blocks.0.norm1.weight", "blocks.0.ls1.gamma", "blocks.0.attn.qkv.bias"):
        assert has_no_decay(name, "dinov2")


def test_learning_rate_multipliers(modules):
    optim = OptimSection(layerwise_decay=0.5, patch_embed_lr_mult=0.2)
    multipliers = {name: lr for name, (lr, _, _) in found(parameter_groups(modules, optim), modules).items()}
    depth = 2
    for name, lr in multipliers.items():
        if not name.startswith("backbone."):
            expected = 1.0
        elif "patch_embed" in name:
            expected = 0.2 * 0.5 ** (depth + 1)
        elif "blocks." in name:
            expected = 0.5 ** (depth - int(name.split(".")[2]))
        elif name == "backbone.norm.weight" or name == "backbone.norm.bias":
            expected = 1.0
        else:
            expected = 0.5 ** (depth + 1)
        assert lr == pytest.approx(expected), name


def test_schedule_reaches_the_groups(modules):
    optimizer = build_optimizer(modules, OptimSection())
    apply_schedule(optimizer, StepValues(lr=0.5, last_layer_lr=0.0, weight_decay=0.1, momentum=0.9, teacher_temp=0.04))
    for group in optimizer.param_groups:
        assert group["lr"] == (0.0 if group["is_last_layer"] else 0.5 * group["lr_multiplier"])
        assert group["weight_decay"] == 0.1 * group["wd_multiplier"]
    assert sum(group["is_last_layer"] for group in optimizer.param_groups) >= 1


def test_frozen_last_layer_does_not_move(modules):
    optimizer = build_optimizer(modules, OptimSection())
    apply_schedule(optimizer, StepValues(lr=0.5, last_layer_lr=0.0, weight_decay=0.1, momentum=0.9, teacher_temp=0.04))
    before = {name: p.clone() for name, p in modules.named_parameters()}
    for p in modules.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name, p in modules.named_parameters():
        assert torch.equal(p, before[name]) == ("last_layer" in name), name


def plain_adamw(p, grad, state, group):
    """Algorithm 2 of arXiv 1711.05101, one parameter, in numpy; PyTorch's epsilon."""
    state["t"] += 1
    (b1, b2), lr = group["betas"], group["lr"]
    state["m"] = b1 * state["m"] + (1 - b1) * grad
    state["v"] = b2 * state["v"] + (1 - b2) * grad**2
    m, v = state["m"] / (1 - b1 ** state["t"]), state["v"] / (1 - b2 ** state["t"])
    return p - lr * group["weight_decay"] * p - lr * m / (np.sqrt(v) + group["eps"])


def test_the_fused_update_is_the_plain_loop(modules):
    modules.double()
    optimizer = build_optimizer(modules, OptimSection(layerwise_decay=0.9))
    assert all(group["fused"] for group in optimizer.param_groups)
    values = [p.detach().numpy().copy() for group in optimizer.param_groups for p in group["params"]]
    states = [{"t": 0, "m": 0.0, "v": 0.0} for _ in values]
    rng = np.random.default_rng(0)
    for step in range(3):
        apply_schedule(optimizer, StepValues(0.1 / (step + 1), 0.05, 0.04 + step, momentum=0.9, teacher_temp=0.04))
        owners = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        for i, (p, group) in enumerate(owners):
            grad = rng.normal(size=p.shape)
            p.grad = torch.from_numpy(grad)
            values[i] = plain_adamw(values[i], grad, states[i], group)
        with Operators() as operators:
            optimizer.step()
        assert operators.count("_fused_adamw_") == len(optimizer.param_groups)
        for (p, _), expected in zip(owners, values, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_devices_without_a_fused_kernel_are_left_to_pytorch(modules):
    optimizer = build_optimizer(modules.to("meta"), OptimSection())
    assert not any(group["fused"] for group in optimizer.param_groups)
