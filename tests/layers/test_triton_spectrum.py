"""Every state of a scan decays in Triton's kernels too: 0 < exp(delta A) < 1 as they round it."""

import sys

import decay_probe
import numpy as np
import pytest
import torch
from triton_interpreter import DEVICE, GPU, HERE, run_in_interpreter

from dinov2.layers.hydra import Hydra
from dinov2.layers.mamba_vision import MambaVisionMixer
from dinov2.layers.scan import RATES, SMALLEST_STEP

if not HERE:

    def test_all_in_the_interpreter():
        run_in_interpreter(__file__)


@pytest.mark.gpu if GPU else lambda tests: tests
class TestKernels:
    __test__ = HERE

    @pytest.fixture(autouse=True)
    def _operators_run_by_triton(self, monkeypatch):
        """In the interpreter too, where tensors are on the CPU."""
        for operator in ("selective_scan", "ssd"):
            monkeypatch.setattr(sys.modules[f"dinov2.ops.{operator}"], "choose_backend", lambda *args: "triton")

    @pytest.fixture(autouse=True)
    def _exp2_errs_as_a_gpus(self, monkeypatch):
        """The interpreter's is exact; here it is as much too large as a GPU's may be (2^-22, PTX's ex2.approx)."""
        if not GPU:
            from triton.runtime.interpreter import InterpreterBuilder

            exact = InterpreterBuilder.create_exp2

            def create_exp2(builder, argument):
                result = exact(builder, argument)
                result.data = np.where(argument.data == 0, result.data, result.data * np.float32(1 + 2**-22))
                return result

            monkeypatch.setattr(InterpreterBuilder, "create_exp2", create_exp2)

    @pytest.mark.parametrize(("log", "bias"), [(-200.0, -1e4), (-200.0, 1e4), (200.0, -1e4), (200.0, 1e4)])
    @pytest.mark.parametrize("layer", [MambaVisionMixer, Hydra])
    def test_every_state_decays_for_extreme_parameters(self, layer, log, bias):
        torch.manual_seed(0)
        layer = layer(32, d_state=3).to(DEVICE)
        for scan in decay_probe.scans_of(layer):
            scan.A_log.data += log
            scan.dt_bias.data += bias
        with decay_probe.recorded_calls() as calls:
            y = layer(torch.randn(1, 2, 32, device=DEVICE))
        assert torch.isfinite(y).all()
        decay_probe.assert_every_state_decays(calls, ["triton"])

    def test_every_state_decays_wherever_layers_go(self):
        steps, rates = torch.logspace(-14, 14, 29, base=2), torch.logspace(-6, 12, 7, base=2)
        assert steps[0] == SMALLEST_STEP
        assert (rates[0], rates[-1]) == RATES
        steps, rates = steps.to(DEVICE), rates.to(DEVICE)
        calls = [
            decay_probe.Call("selective_scan", steps.view(1, 29, 1), -rates.expand(29, 7), None, False),
            decay_probe.Call("ssd", steps.view(29, 1, 1).expand(29, 1, 7), -rates, None, False),
        ]
        decay_probe.assert_every_state_decays(calls, ["triton"])
