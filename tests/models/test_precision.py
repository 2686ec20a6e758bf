"""What stays in float32 under autocast and under FSDP2's bf16 policy, and 200 steps of training in both."""

import copy

import pytest
import torch
import torch.distributed as dist
from precision_probe import watched
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from dinov2.distributed.parallelize import float32_modules, shard_backbone
from dinov2.layers.einfft import EinFFT
from dinov2.layers.hydra import HydraScan
from dinov2.layers.scan import SelectiveScan
from dinov2.models import build_backbone

SIX = ("vit12", "vit24", "vim_einfft", "hydra_einfft", "hydra_hybrid", "mvhybrid")
STATE_SPACE = SIX[2:]
# Two blocks: the float32 modules that each backbone has.
EXPECTED = {
    "vim_einfft": {SelectiveScan: 4, EinFFT: 2},
    "hydra_einfft": {HydraScan: 2, EinFFT: 2},
    "hydra_hybrid": {HydraScan: 1, EinFFT: 1},
    "mvhybrid": {SelectiveScan: 1, EinFFT: 1},
}
LOW = (torch.bfloat16, torch.float16)
SCAN_PARAMETERS = {"A_log", "D", "dt_bias"}
EINFFT_PARAMETERS = {f"complex_{kind}_{layer}" for kind in ("weight", "bias") for layer in (1, 2)}


@pytest.fixture(scope="module")
def mesh():
    """One process that is a group of its own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def build(name, **overrides):
    torch.manual_seed(0)
    return build_backbone(
        name, **({"embed_dim": 32, "num_heads": 2, "depth": 2, "img_size": 32, "patch_size": 8} | overrides)
    )


def images(batch=4, side=32, seed=1):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def named(model, modules):
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(module)]: module for module in modules}


@pytest.mark.parametrize("name", SIX)
def test_float32_modules_are_the_scans_and_einfft(name):
    found = float32_modules(build(name))
    kinds = {kind: sum(type(module) is kind for module in found) for kind in {type(module) for module in found}}
    assert kinds == EXPECTED.get(name, {})


def assert_float32_inside(model, run):
    """Run the model and check what its float32 modules held and computed; return what its projections held."""
    exact = named(model, float32_modules(model))
    linears = named(model, [module for module in model.modules() if isinstance(module, nn.Linear)])
    with watched(exact | linears) as seen:
        loss = run()
    assert torch.isfinite(loss)
    assert exact
    for name, module in exact.items():
        expected = EINFFT_PARAMETERS if isinstance(module, EinFFT) else SCAN_PARAMETERS
        assert seen[name].calls > 0
        assert seen[name].parameters == dict.fromkeys(expected, torch.float32), name
        assert seen[name].computed, name
        low = {entry for entry in seen[name].computed if entry[1] in LOW}
        assert not low, f"{name} computed in {low}"
    return [seen[name] for name in linears]


@pytest.mark.parametrize("name", STATE_SPACE)
def test_scans_and_einfft_compute_in_float32_under_autocast(name):
    model = build(name)

    def run():
        with torch.autocast("cpu", torch.bfloat16):
            return model(images()).float().square().mean()

    for projection in assert_float32_inside(model, run):
        assert torch.bfloat16 in {dtype for _, dtype in projection.computed}  # autocast was at work


@pytest.mark.parametrize("name", STATE_SPACE)
def test_scans_and_einfft_compute_in_float32_under_a_bf16_policy(name, mesh):
    model = build(name)
    shard_backbone(model, mesh, MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    for projection in assert_float32_inside(model, lambda: model(images()).float().square().mean()):
        assert set(projection.parameters.values()) == {torch.bfloat16}  # the policy was at work
    model(images()).float().square().mean().backward()
    for name, parameter in model.named_parameters():  # what is stored and optimised
        assert isinstance(parameter, DTensor)
        assert parameter.dtype == torch.float32, name
        if not name.endswith("mask_token"):
            assert parameter.grad.dtype == torch.float32, name


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
@pytest.mark.parametrize("reshard", [True, False])
@pytest.mark.parametrize("name", SIX)
def test_a_sharded_backbone_computes_what_the_whole_one_does(name, reshard, mesh):
    whole = build(name, num_register_tokens=2)
    sharded = copy.deepcopy(whole)
    shard_backbone(sharded, mesh, MixedPrecisionPolicy(), reshard_after_forward=reshard)
    x, masks = images(2), torch.zeros(2, 16, dtype=torch.bool)
    masks[:, 3:7] = True
    ways = {
        "forward": lambda model: [model(x)],
        "forward in training": lambda model: list(model(x, masks, is_training=True).values())[:4],
        "forward_features": lambda model: [model.forward_features(x)["x_norm_patchtokens"]],
        "forward_features_list": lambda model: [
            out["x_prenorm"] for out in model.forward_features_list([x, x[..., :16, :16]], [masks, None])
        ],
        "get_intermediate_layers": lambda model: list(model.get_intermediate_layers(x, n=2)),
    }
    for way, outputs_of in ways.items():
        gradients = []
        for model in (whole, sharded):
            model.zero_grad()
            outputs = outputs_of(model)
            if model is whole:
                expected = outputs
                weights = [torch.randn(t.shape, generator=torch.Generator().manual_seed(2)) for t in outputs]
            torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-5)
            sum((t * weight).sum() for t, weight in zip(outputs, weights, strict=True)).backward()
            gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys(), way
        assert len(gradients[0]) > 10
        for parameter, gradient in gradients[1].items():
            torch.testing.assert_close(gradient.full_tensor(), gradients[0][parameter], rtol=1e-4, atol=1e-4)


def train(model, embed, steps=200):
    """Fit random embeddings of four noisy images at the peak learning rate of pretraining; returns the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2.45e-3, foreach=True)
    x, target = images(), torch.randn(4, 32, generator=torch.Generator().manual_seed(2))
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = (embed(x + 0.1 * images(seed=step)).float() - target).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    return torch.tensor(losses)


def assert_learnt(losses, model):
    assert len(losses) == 200
    assert torch.isfinite(losses).all()
    assert losses[-20:].mean() < 0.5 * losses[0]
    assert all(torch.isfinite(p.to_local() if isinstance(p, DTensor) else p).all() for p in model.parameters())


@pytest.mark.parametrize("name", SIX)
def test_losses_stay_finite_under_autocast(name):
    model = build(name)

    def embed(x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    assert_learnt(train(model, embed), model)


@pytest.mark.parametrize("name", STATE_SPACE)
def test_losses_stay_finite_under_a_bf16_policy(name, mesh):
    model = build(name)
    shard_backbone(model, mesh, MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    assert_learnt(train(model, model), model)
