"""Linear layers by oneDNN against float64, and where PyTorch's own are used instead."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dinov2.layers.linear import Linear
from dinov2.ops import dispatch
from dinov2.ops import linear as ops
from dinov2.ops.dispatch import BackendError, choose_backend, chosen_backends, forced
from dinov2.ops.linear import linear


@pytest.fixture
def onednn(monkeypatch):
    """The backend on any processor whose PyTorch has oneDNN: only its speed depends on the processor."""
    try:
        ops._product(torch.ones(1, 1), torch.ones(1, 1))
    except Exception as error:
        pytest.skip(f"this PyTorch has no oneDNN: {error}")
    monkeypatch.setattr(ops, "_why_not", lambda: None)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 5, 3), (5, 12), (2, 3, 4, 16), (4,)])
@pytest.mark.parametrize("out", [2, 40])
def test_values_and_gradients(onednn, shape, out, with_bias):
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(out, shape[-1])
    inputs = [x, weight, *([torch.randn(out)] if with_bias else [])]
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    truth = F.linear(*exact)
    grad = torch.randn(truth.shape)
    true_gradients = torch.autograd.grad(truth, exact, grad.double())
    inputs = [tensor.requires_grad_() for tensor in inputs]
    y = linear(*inputs, backend="onednn")
    gradients = torch.autograd.grad(y, inputs, grad)
    torch.testing.assert_close(y.double(), truth, rtol=1e-5, atol=1e-5)
    for found, expected in zip(gradients, true_gradients, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("needed", [0, 1, 2])
def test_only_the_gradients_that_are_needed(onednn, needed):
    inputs = [torch.randn(3, 4), torch.randn(2, 4), torch.randn(2)]
    inputs[needed].requires_grad_()
    linear(*inputs, backend="onednn").sum().backward()
    expected = torch.autograd.grad(F.linear(*inputs).sum(), inputs[needed])[0]
    torch.testing.assert_close(inputs[needed].grad, expected)


def test_views_are_no_obstacle(onednn):
    x, weight = torch.randn(6, 5).T[1:], torch.randn(6, 8)[:, ::2].T
    x.requires_grad_()
    weight = weight.T[:, :4].contiguous().T.requires_grad_()
    y = linear(x, weight, backend="onednn")
    torch.testing.assert_close(y, F.linear(x, weight))
    grad = torch.randn(y.shape[::-1]).T
    found, expected = (torch.autograd.grad(out, (x, weight), grad) for out in (y, F.linear(x, weight)))
    torch.testing.assert_close(found, expected)


def test_no_rows_give_no_rows_and_zero_gradients():
    layer = Linear(4, 3)
    layer(torch.zeros(0, 4)).sum().backward()
    assert not layer.weight.grad.any()


def test_the_layer_is_torchs_own(onednn):
    layer, x = Linear(4, 3), torch.randn(2, 5, 4)
    plain = nn.Linear(4, 3)
    plain.load_state_dict(copy.deepcopy(layer.state_dict()))
    torch.testing.assert_close(layer(x), plain(x))


def test_autocast_and_graphs_use_the_plain_layer(onednn, monkeypatch):
    monkeypatch.setattr(ops._OneDnnLinear, "apply", lambda *args: pytest.fail("not the plain layer"))
    layer, x = Linear(4, 3), torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    torch.jit.trace(layer, x, check_trace=False)
    torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    torch.export.export(layer, (x,), strict=False)


def test_the_plain_layer_is_reported_and_a_forced_one_warned_of(onednn, monkeypatch, caplog):
    monkeypatch.setattr(dispatch, "_chosen", {})
    monkeypatch.setattr(dispatch, "_overruled", set())
    torch.compiler.reset()  # what is decided while a graph is traced is not decided again
    layer, x = Linear(4, 3), torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert list(chosen_backends()["linear"]) == ["plain"]
    assert "autocast" in chosen_backends()["linear"]["plain"]
    assert "instead" not in caplog.text
    with forced(linear="onednn"):
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                layer(x)
            torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
        layer(x)
    warnings = [record.getMessage() for record in caplog.records if record.name == "dinov2"]
    start = "linear: backend plain instead of onednn (forced for a part of the program): "
    assert warnings == [
        f"{start}autocast lowers PyTorch's own operators only",
        f"{start}a graph holds PyTorch's own operators",
    ]
    assert list(chosen_backends()["linear"]) == ["plain", "onednn"]


@pytest.mark.parametrize(
    ("where", "why"),
    [(("cuda", torch.float32), "needs a CPU"), (("cpu", torch.float64), "the inputs are torch.float64")],
)
def test_where_onednn_is_no_choice(onednn, where, why):
    with pytest.raises(BackendError, match=why):
        choose_backend("linear", "onednn", *where, 16)
    assert choose_backend("linear", "auto", *where, 16) == "plain"


@pytest.mark.parametrize(("cpu", "capability"), [("Intel(R) Xeon(R)", "AVX512"), ("AMD EPYC", "AVX2")])
def test_other_processors_keep_pytorchs_choice(monkeypatch, cpu, capability):
    monkeypatch.setattr(ops, "cpu_model", lambda: cpu)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert f"{cpu} ({capability}) is no AMD processor with AVX-512" in ops._why_not.__wrapped__()


def test_an_interface_that_has_changed_is_reported_and_not_raised(monkeypatch):
    monkeypatch.setattr(ops, "cpu_model", lambda: "AMD EPYC")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")

    def changed(*args):
        raise TypeError("unexpected argument")

    monkeypatch.setattr(ops, "_product", changed)
    assert "cannot be called (TypeError: unexpected argument)" in ops._why_not.__wrapped__()
    monkeypatch.setattr(ops, "_product", lambda a, b: a @ b.T + 1)
    assert "gives other products" in ops._why_not.__wrapped__()


@pytest.mark.parametrize("stride", [(5, 1), (1, 6), (9, 1), (1, 8), (0, 1)])
def test_the_second_factor_lies_without_gaps(stride):
    matrix = torch.randn(100).as_strided((6, 5), stride)
    dense = ops._without_gaps(matrix)
    assert dense.is_contiguous() or dense.T.is_contiguous()
    assert torch.equal(dense, matrix)
    assert (dense is matrix) == (stride in ((5, 1), (1, 6)))
