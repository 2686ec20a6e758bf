"""Attention over packs against its formula image by image in float64, and the use of xFormers where it is there."""

import math
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from dinov2.ops import attention as ops
from dinov2.ops import dispatch
from dinov2.ops.attention import attention
from dinov2.ops.dispatch import BackendError, forced, usable_backends
from dinov2.ops.packing import pack, unpack

SHAPES = ((2, 5), (3, 2), (1, 1))


def projections(shapes=SHAPES, heads=2, width=8):
    torch.manual_seed(0)
    return [torch.randn(*shape, 3, heads, width, dtype=torch.float64) for shape in shapes]


def of_one_image(qkv):
    """softmax(q k^T / sqrt(E)) v, head by head, for (L, 3, H, E)."""
    heads = []
    for head in range(qkv.shape[2]):
        q, k, v = qkv[:, :, head].unbind(1)
        heads.append(torch.softmax(q @ k.T / math.sqrt(q.shape[1]), 1) @ v)
    return torch.stack(heads, 1)


def expected(batches):
    return pack([torch.stack([of_one_image(image) for image in batch]) for batch in batches])


def test_a_pack_is_mixed_image_by_image():
    packed = pack(projections()).requires_grad_()
    truth = expected(unpack(packed, SHAPES))
    weight = torch.randn_like(truth)
    (true_gradient,) = torch.autograd.grad((truth * weight).sum(), packed)
    out = attention(packed, SHAPES)
    (gradient,) = torch.autograd.grad((out * weight).sum(), packed)
    torch.testing.assert_close(out, truth)
    torch.testing.assert_close(gradient, true_gradient)


def test_a_batch_needs_no_shapes():
    (batch,) = projections(SHAPES[:1])
    torch.testing.assert_close(pack([attention(batch)]), expected([batch]))
    assert torch.equal(attention(pack([batch]), SHAPES[:1]), pack([attention(batch)]))


@pytest.fixture
def xformers(monkeypatch):
    """A stand-in that attends within the blocks of its mask, and that our code takes to run on this machine."""
    calls = []

    def from_seqlens(lengths, device=None):
        return SimpleNamespace(lengths=lengths)

    def memory_efficient_attention(q, k, v, attn_bias):
        assert q.shape[0] == 1
        calls.append(attn_bias.lengths)
        blocks = torch.stack([q, k, v], 2)[0].split(attn_bias.lengths)
        return torch.cat([of_one_image(block) for block in blocks])[None]

    fmha = ModuleType("xformers.ops.fmha")
    fmha.memory_efficient_attention = memory_efficient_attention
    fmha.attn_bias = SimpleNamespace(BlockDiagonalMask=SimpleNamespace(from_seqlens=from_seqlens))
    for name in ("xformers", "xformers.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "xformers.ops.fmha", fmha)
    monkeypatch.setattr(ops, "choose_backend", lambda *args: "xformers")
    caches = (ops._xformers, ops._mask, ops._why_not)
    for cached in caches:
        cached.cache_clear()
    yield calls
    for cached in caches:
        cached.cache_clear()


def test_xformers_gets_one_block_an_image(xformers):
    packed = pack(projections())
    torch.testing.assert_close(attention(packed, SHAPES), expected(unpack(packed, SHAPES)))
    assert xformers == [[5, 5, 2, 2, 2, 1]]
    assert ops._why_not() is None
    assert "xformers" in usable_backends("attention", "cuda", torch.bfloat16, 64)


@pytest.mark.parametrize(
    ("where", "why"),
    [
        (("cpu", torch.float32, 64), "needs a CUDA device"),
        (("cuda", torch.float64, 64), "no kernel for torch.float64"),
        (("cuda", torch.bfloat16, 10), "multiple of 8"),
    ],
)
def test_where_xformers_is_no_choice(where, why):
    assert why in ops._xformers_refusal(*where)
    assert usable_backends("attention", *where) == ["sdpa"]


def test_forcing_xformers_on_a_cpu_says_why_not():
    with pytest.raises(BackendError, match="not xformers: it needs a CUDA device"):
        attention(pack(projections()), SHAPES, backend="xformers")


def test_a_compiled_graph_says_that_it_leaves_out_xformers(monkeypatch, caplog):
    monkeypatch.setattr(dispatch, "_overruled", set())
    torch.compiler.reset()  # what is decided while a graph is traced is not decided again
    packed = pack(projections())
    with forced(attention="xformers"):
        out = torch.compile(attention, backend="aot_eager", fullgraph=True)(packed, SHAPES)
    torch.testing.assert_close(out, attention(packed, SHAPES))
    (warning,) = [record for record in caplog.records if record.name == "dinov2" and record.levelname == "WARNING"]
    assert "attention: backend sdpa instead of xformers" in warning.getMessage()


def test_importing_the_backbones_imports_no_xformers():
    code = "import sys, dinov2.models, dinov2.ops.attention; print([m for m in sys.modules if 'xformers' in m])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
