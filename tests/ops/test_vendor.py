"""The vendors' kernels: used only where their compiled symbols are really there, and called as they want to be."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from dinov2.ops import selective_scan, ssd
from dinov2.ops.conv_silu import vendor as conv_vendor
from dinov2.ops.dispatch import BackendError, choose_backend, usable_backends
from dinov2.ops.selective_scan import vendor as scan_vendor
from dinov2.ops.ssd import vendor as ssd_vendor


@pytest.fixture(autouse=True)
def forget():
    """Each test asks anew what is installed."""
    functions = [scan_vendor.why_not, scan_vendor._interface, conv_vendor.why_not, conv_vendor._interface]
    functions += [ssd_vendor.why_not, ssd_vendor._function]
    for function in functions:
        function.cache_clear()
    yield
    for function in functions:
        function.cache_clear()


def install(monkeypatch, **modules):
    """Put modules under their names (`__` for a dot) where imports find them."""
    for name, content in modules.items():
        module = ModuleType(name.replace("__", "."))
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        parent, _, child = module.__name__.rpartition(".")
        if parent:
            monkeypatch.setitem(sys.modules, parent, sys.modules.get(parent, ModuleType(parent)))
            setattr(sys.modules[parent], child, module)


def test_a_package_without_its_extension_is_not_enough(monkeypatch):
    install(monkeypatch, mamba_ssm__ops__selective_scan_interface={"selective_scan_fn": print})
    assert "selective_scan_cuda" in scan_vendor.why_not()
    scan_vendor.why_not.cache_clear()
    install(monkeypatch, selective_scan_cuda={"fwd": print})
    assert scan_vendor.why_not() == "mamba-ssm's extension lacks bwd"
    scan_vendor.why_not.cache_clear()
    install(monkeypatch, selective_scan_cuda={"fwd": print, "bwd": print})
    assert scan_vendor.why_not() is None
    assert "vendor" in usable_backends("selective_scan", "cuda")
    assert "vendor" not in usable_backends("selective_scan", "cpu")


def test_an_extension_for_another_pytorch_is_reported_and_not_raised(monkeypatch):
    class Broken(ModuleType):
        def __getattr__(self, name):
            raise ImportError("undefined symbol: _ZN3c10")

    monkeypatch.setitem(sys.modules, "causal_conv1d_cuda", ModuleType("causal_conv1d_cuda"))
    monkeypatch.setitem(sys.modules, "causal_conv1d", Broken("causal_conv1d"))
    assert "undefined symbol" in conv_vendor.why_not()


def test_the_scan_is_called_with_one_dtype_for_what_varies(monkeypatch):
    def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        assert {t.dtype for t in (u, delta, B, C, z)} == {torch.bfloat16}
        assert {t.dtype for t in (A, D, delta_bias)} == {torch.float32}
        return selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend="reference")

    install(monkeypatch, mamba_ssm__ops__selective_scan_interface={"selective_scan_fn": selective_scan_fn})
    r = torch.randn
    u, delta, z = r(2, 3, 5).bfloat16(), r(2, 3, 5), r(2, 3, 5)
    rest = (-torch.rand(3, 4), r(2, 4, 5), r(2, 4, 5), r(3), z, r(3), True)
    expected = selective_scan(u, delta, *rest, backend="reference")
    found = scan_vendor.scan_vendor(u, delta, *rest)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_causal_convolution_gives_any_padding(monkeypatch, before):
    def causal_conv1d_fn(x, weight, bias=None, activation=None):
        assert activation == "silu"
        assert x.stride(1) == 1  # channels last in memory, as our tokens lie
        padded = torch.nn.functional.pad(x, (weight.shape[1] - 1, 0))
        y = torch.nn.functional.conv1d(padded, weight.unsqueeze(1), bias, groups=x.shape[1])
        return torch.nn.functional.silu(y)

    install(monkeypatch, causal_conv1d={"causal_conv1d_fn": causal_conv1d_fn})
    x, weight, bias = torch.randn(2, 7, 6), torch.randn(6, 1, 4), torch.randn(6)
    expected = torch.ops.aten.silu(
        torch.nn.functional.conv1d(
            torch.nn.functional.pad(x.transpose(1, 2), (before, 3 - before)), weight, bias, groups=6
        )
    ).transpose(1, 2)
    torch.testing.assert_close(conv_vendor.conv_silu_vendor(x, weight, bias, before), expected)


def test_the_convolution_is_refused_channels_that_its_kernel_does_not_take(monkeypatch):
    install(monkeypatch, causal_conv1d_cuda={}, causal_conv1d={"causal_conv1d_fn": print})
    assert usable_backends("conv_silu", "cuda", torch.float32, 4, 16) == ["vendor", "plain"]
    assert usable_backends("conv_silu", "cuda", torch.float32, 4, 12) == ["plain"]
    with pytest.raises(BackendError, match=r"not vendor: its kernel for our layout takes multiples of 8 channels.* 12"):
        choose_backend("conv_silu", "vendor", "cuda", torch.float32, 4, 12)


def test_the_dual_form_is_called_with_its_chunk(monkeypatch):
    seen = SimpleNamespace(chunk=None)

    def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size):
        seen.chunk = chunk_size
        return ssd(x, dt, A, B, C, backend="reference")

    install(monkeypatch, mamba_ssm__ops__triton__ssd_combined={"mamba_chunk_scan_combined": mamba_chunk_scan_combined})
    assert ssd_vendor.why_not() is None
    x, dt, A = torch.randn(1, 5, 2, 3), torch.rand(1, 5, 2), -torch.rand(2)
    B, C = torch.randn(1, 5, 1, 4), torch.randn(1, 5, 1, 4)
    torch.testing.assert_close(ssd_vendor.ssd_vendor(x, dt, A, B, C, 32), ssd(x, dt, A, B, C, backend="reference"))
    assert seen.chunk == 32


def test_without_the_packages_the_reason_names_them():
    for reason, package in (
        (scan_vendor.why_not(), "mamba-ssm"),
        (conv_vendor.why_not(), "causal-conv1d"),
        (ssd_vendor.why_not(), "mamba-ssm"),
    ):
        assert reason is None or package in reason
