"""A step reads no number from the device: on a GPU each such read would make the host wait."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dinov2.data.datasets import make_dataset
from dinov2.data.loaders import make_loader
from dinov2.ops.dispatch import usable_backends
from dinov2.train.optim import build_optimizer
from dinov2.train.ssl_meta_arch import SSLMetaArch

READS = {"_local_scalar_dense", "nonzero", "nonzero_static", "masked_select", "equal", "is_nonzero", "unique_dim"}


class Reads(TorchDispatchMode):
    """Notes the operators whose result, or the shape of it, the host has to wait for."""

    def __init__(self):
        super().__init__()
        self.found, self.seen = [], set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.seen.add(name)
        boolean_index = name in ("index", "index_put_") and any(
            t is not None and t.dtype == torch.bool for t in args[1]
        )
        if name in READS or boolean_index:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("centering", ["centering", "sinkhorn_knopp"])
@pytest.mark.parametrize("arch", ["vit12", "vim_einfft", "hydra_hybrid", "mvhybrid"])
def test_the_compute_part_of_a_step_never_waits(small, arch, centering, monkeypatch):
    student = {"arch": arch, "embed_dim": 32, "num_heads": 2, "depth": 2, "drop_path_rate": 0.2, "layerscale": 1.0}
    config = small(student=student, train={"centering": centering})
    model = SSLMetaArch(config).train()
    optimizer = build_optimizer(model.student, config.optim)
    dataset = make_dataset(config.train.dataset_path)
    batch = next(iter(make_loader(dataset, config.crops, config.ibot, patch_size=16, global_batch_size=4, seed=0)))
    usable_backends("linear")  # tries oneDNN on a CPU, once
    for method in ("tolist", "numpy"):  # on a CPU these run no operator
        monkeypatch.setattr(torch.Tensor, method, None)
    for _ in range(2):  # the first step makes the optimiser's state
        with Reads() as reads:
            optimizer.zero_grad(set_to_none=True)
            model(batch, 0.05)["total_loss"].backward()
            for module in model.student.values():
                nn.utils.clip_grad_norm_(module.parameters(), 3.0)
            optimizer.step()
            model.update_teacher(0.99)
        assert {
            "native_layer_norm",
            "native_layer_norm_backward",
            "_fused_adamw_",
            "_foreach_lerp_",
        } <= reads.seen  # all of the step went by here
        assert not reads.found


@pytest.mark.parametrize("read", [torch.Tensor.item, torch.nonzero, lambda x: x[x > 0], bool])
def test_the_trap_catches_reads(read):
    with Reads() as reads:
        read(torch.ones(1))
    assert reads.found
