"""torch.compile and activation checkpointing of every backbone: nothing breaks the graph, and nothing changes."""

import copy
import functools
import shutil

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from dinov2.models import build_backbone

SIX = ("vit12", "vit24", "vim_einfft", "hydra_einfft", "hydra_hybrid", "mvhybrid")
EVERY_MIXER = ("vim_einfft", "hydra_hybrid", "mvhybrid")  # among their blocks are all that the six have
OUTPUTS = ("x_norm_clstoken", "x_norm_regtokens", "x_norm_patchtokens", "x_prenorm")


def build(name, depth=2):
    torch.manual_seed(0)
    model = build_backbone(
        name, embed_dim=32, num_heads=2, depth=depth, img_size=32, patch_size=8, num_register_tokens=1, layerscale=0.5
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def batch(height=32, width=32):
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(2, height * width // 64, dtype=torch.bool)
    masks[:, ::3] = True
    return x, masks


def outputs_and_gradients(model, x, masks):
    """Return the outputs of training mode and the gradients of a projection of all of them."""
    model.zero_grad()
    out = model(x, masks, is_training=True)
    g = torch.Generator().manual_seed(2)
    sum((out[name] * torch.randn(out[name].shape, generator=g)).sum() for name in OUTPUTS).backward()
    gradients = {name.replace("_orig_mod.", ""): p.grad for name, p in model.named_parameters()}
    return {name: out[name].detach() for name in OUTPUTS} | gradients


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor is not None, name
        scale = expected[name].abs().max().item()
        assert scale > 0, name
        # The constant is for gradients that norms cancel almost entirely.
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-4 * scale + 1e-5, msg=name)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("name", SIX)
def test_a_backbone_compiles_to_one_graph(name):
    model = build(name)
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    assert_same(outputs_and_gradients(compiled, *batch()), outputs_and_gradients(model, *batch()))


@pytest.mark.parametrize("name", EVERY_MIXER)
def test_a_compiled_backbone_takes_crops_of_other_sizes(name):
    model = build(name)
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    for size in [(32, 32), (16, 24)]:
        assert_same(outputs_and_gradients(compiled, *batch(*size)), outputs_and_gradients(model, *batch(*size)))


@pytest.mark.parametrize("name", EVERY_MIXER)
def test_blocks_compile_one_by_one_under_autocast(name):
    """The way in which training compiles: block by block, inside the autocast of the step."""
    model = build(name)
    compiled = copy.deepcopy(model)
    for block in compiled.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = outputs_and_gradients(model, *batch()), outputs_and_gradients(compiled, *batch())
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=0.05 * expected[key].abs().max().item(), msg=key)


@pytest.mark.slow  # a compiler of C++ at work, about two minutes where its cache is cold
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on the PATH")
@pytest.mark.parametrize(("name", "depth"), [("vim_einfft", 1), ("hydra_einfft", 1), ("mvhybrid", 2)])
def test_every_mixer_compiles_to_machine_code(name, depth):
    """One block of each: the hybrid's second is the attention's."""
    model = build(name, depth)
    compiled = torch.compile(copy.deepcopy(model), backend="inductor", fullgraph=True)
    assert_same(outputs_and_gradients(compiled, *batch()), outputs_and_gradients(model, *batch()))


def recomputed(model):
    """Wrap every block's forward in a checkpoint."""
    for block in model.blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    return model


def wrapped(model):
    """Put every block into PyTorch's wrapper module."""
    for index, block in enumerate(model.blocks):
        model.blocks[index] = checkpoint_wrapper(block)
    return model


@pytest.mark.parametrize("way", [recomputed, wrapped])
@pytest.mark.parametrize("name", SIX)
def test_activation_checkpointing_changes_nothing(name, way):
    model = build(name)
    expected = outputs_and_gradients(model, *batch())
    saving = way(copy.deepcopy(model))
    assert list(saving.state_dict()) == list(model.state_dict())
    found = outputs_and_gradients(saving, *batch())
    found = {key.replace("_checkpoint_wrapped_module.", ""): tensor for key, tensor in found.items()}
    assert_same(found, expected)


def saved_bytes(model):
    """What autograd keeps between the forward and the backward, parameters aside."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(*batch(), is_training=True)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("way", [recomputed, wrapped])
@pytest.mark.parametrize("name", SIX)
def test_activation_checkpointing_keeps_less(name, way):
    model = build(name)
    assert saved_bytes(way(copy.deepcopy(model))) < 0.5 * saved_bytes(model)


@pytest.mark.parametrize("name", EVERY_MIXER)
def test_checkpointed_blocks_compile_without_a_break(name):
    model = build(name)
    compiled = torch.compile(recomputed(copy.deepcopy(model)), backend="aot_eager", fullgraph=True)
    assert_same(outputs_and_gradients(compiled, *batch()), outputs_and_gradients(model, *batch()))
