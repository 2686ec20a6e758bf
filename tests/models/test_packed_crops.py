"""Crops of several sizes in one pass equal the crops of each size alone: outputs and gradients, in float64."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy

from dinov2.distributed.parallelize import shard_backbone
from dinov2.layers.drop_path import DropPath
from dinov2.models import build_backbone
from dinov2.ops.packing import pack, unpack

SIX = ("vit12", "vit24", "vim_einfft", "hydra_einfft", "hydra_hybrid", "mvhybrid")
SIZES = ((2, 32, 32), (3, 16, 24), (1, 8, 8))  # images, height, width
VARIANTS = {
    "plain": {},
    "registers": {"num_register_tokens": 2},
    "layerscale": {"layerscale": 0.5},
    "swiglu": {"blocks": ["1 x mamba_vision + swiglu", "1 x attention + swiglu"]},
    "einfft after attention": {"blocks": ["1 x attention + einfft"], "num_register_tokens": 1},
    "mlp after a scan": {"blocks": ["1 x hydra + mlp"]},
}


def build(name="vit12", **overrides):
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "num_heads": 2, "img_size": 32, "patch_size": 8}
    model = build_backbone(name, **(sizes | ({} if "blocks" in overrides else {"depth": 2}) | overrides))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.double()


def inputs():
    """Return images, masks and wanted patches of every size; the second batch is not masked, the third wants none."""
    g = torch.Generator().manual_seed(1)
    xs = [torch.randn(count, 3, h, w, generator=g, dtype=torch.float64) for count, h, w in SIZES]
    masks = [torch.rand(count, h * w // 64, generator=g) < 0.3 for count, h, w in SIZES]
    masks[1] = None
    wanted = [torch.tensor([30, 2, 7, 8, 16]), torch.tensor([17, 0]), None]
    return xs, masks, wanted


def apart(model, xs, masks, wanted):
    """Return CLS and wanted patches by a pass for every size."""
    outputs = [model.forward_features(x, mask) for x, mask in zip(xs, masks, strict=True)]
    none = torch.tensor([], dtype=torch.int64)
    return [
        (out["x_norm_clstoken"], out["x_norm_patchtokens"].flatten(0, 1)[none if places is None else places])
        for out, places in zip(outputs, wanted, strict=True)
    ]


def gradients(model, outputs):
    model.zero_grad()
    g = torch.Generator().manual_seed(2)
    tensors = [tensor for pair in outputs for tensor in pair]
    sum((t * torch.randn(t.shape, generator=g, dtype=t.dtype)).sum() for t in tensors).backward()
    names = {name: name.replace("_checkpoint_wrapped_module.", "") for name, _ in model.named_parameters()}
    full = {names[n]: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in full.items()}


def assert_equal_apart(model, whole):
    """Compare one pass of `model` with the passes of `whole` apart."""
    expected = apart(whole, *inputs())
    found = model.forward_selected(*inputs())
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    expected, found = gradients(whole, expected), gradients(model, found)
    assert found.keys() == expected.keys()
    assert len(found) > 10
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


@pytest.fixture(params=[*SIX, *(f"vit12 {variant}" for variant in VARIANTS), "mvhybrid registers"])
def model(request):
    name, _, variant = request.param.partition(" ")
    return build(name, **VARIANTS.get(variant, {}))


@pytest.mark.parametrize("middle", [True, False])
def test_selected_tokens_are_those_of_passes_apart(model, middle):
    model.spec = replace(model.spec, cls_position="middle" if middle else "first")
    assert_equal_apart(model, model)


def test_all_outputs_are_those_of_passes_apart(model):
    xs, masks, _ = inputs()
    found = model.forward_features_list(xs, masks)
    for out, x, mask in zip(found, xs, masks, strict=True):
        expected = model.forward_features(x, mask)
        assert out["masks"] is mask
        for key in expected.keys() - {"masks"}:
            torch.testing.assert_close(out[key], expected[key], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", SIX)
def test_checkpointed_blocks(name):
    whole = build(name)
    saving = copy.deepcopy(whole)
    for index, block in enumerate(saving.blocks):
        saving.blocks[index] = checkpoint_wrapper(block)
    assert_equal_apart(saving, whole)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("vim_einfft", "hydra_hybrid")]


@pytest.mark.parametrize("name", ["mvhybrid", *SLOW])
def test_compiled_blocks(name):
    torch.compiler.reset()
    whole = build(name)
    compiled = copy.deepcopy(whole)
    for block in compiled.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    assert_equal_apart(compiled, whole)
    torch.compiler.reset()


def test_blocks_compile_once_for_any_number_of_wanted_patches():
    """Masked patches differ in number from step to step."""
    torch.compiler.reset()
    model = build("mvhybrid")
    teacher = copy.deepcopy(model).requires_grad_(False)
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    for block in [*model.blocks, *teacher.blocks]:
        block.compile(backend=backend, fullgraph=True)
    xs, masks, _ = inputs()
    counts = []
    for amount in (5, 9, 7, 12, 3):
        wanted = [torch.arange(amount), None, None]
        model.forward_selected(xs, masks, wanted)
        with torch.no_grad():
            teacher.forward_selected(xs[:1], [None], wanted[:1])
        counts.append(len(graphs))
    assert counts[1:] == [counts[1]] * 4  # a free length from the second step on
    assert counts[1] < torch._dynamo.config.recompile_limit
    torch.compiler.reset()


@pytest.fixture(scope="module")
def mesh():
    """One process that is a group of its own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", SIX)
def test_sharded_blocks_are_gathered_once(name, checkpointing, mesh):
    whole = build(name)
    sharded = copy.deepcopy(whole)
    for index, block in enumerate(sharded.blocks if checkpointing else ()):
        sharded.blocks[index] = checkpoint_wrapper(block)
    shard_backbone(sharded, mesh, MixedPrecisionPolicy())
    calls = []
    for block in sharded.blocks:
        block.register_forward_pre_hook(lambda module, args: calls.append(module))
    sharded.forward_selected(*inputs())
    assert calls == list(sharded.blocks)
    assert_equal_apart(sharded, whole)


def test_drop_path_drops_whole_images_of_a_pack():
    torch.manual_seed(0)
    shapes, layer = ((2000, 3), (1000, 2)), DropPath(0.3).train()
    ones = [torch.ones(count, length, 4) for count, length in shapes]
    dropped = layer(pack(ones), shapes)
    for part in unpack(dropped, shapes):
        kept = part[:, :1, :1] != 0
        assert torch.equal(part, torch.where(kept, torch.full_like(part, 1 / 0.7), torch.zeros_like(part)))
        assert kept.float().mean() == pytest.approx(0.7, abs=0.09)  # six standard deviations of the smaller batch
    places = torch.tensor([0, 7, 6003, 6000, 7999])
    torch.manual_seed(1)
    everything = layer(pack(ones), shapes)
    torch.manual_seed(1)
    assert torch.equal(layer(pack(ones)[:, places], shapes, places), everything[:, places])


def test_drop_path_in_one_pass_with_selected_tokens():
    """The last block draws for whole images though it computes some of their tokens."""
    model = build("vit12", drop_path_rate=0.5).train()
    xs, masks, wanted = inputs()
    torch.manual_seed(3)
    full = model.forward_features_list(xs, masks)
    torch.manual_seed(3)
    selected = model.forward_selected(xs, masks, wanted)
    for out, (cls, patches), places in zip(full, selected, wanted, strict=True):
        torch.testing.assert_close(cls, out["x_norm_clstoken"])
        if places is not None:
            torch.testing.assert_close(patches, out["x_norm_patchtokens"].flatten(0, 1)[places])
