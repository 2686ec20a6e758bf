"""A step reads numbers from the device once, its report: on a GPU each such read makes the host wait."""

from itertools import islice, product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dinov2.ops.dispatch import usable_backends
from dinov2.train.feed import BatchFeed
from dinov2.train.trainer import Trainer

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


@pytest.mark.parametrize(
    ("arch", "centering", "dtype"),
    [
        *product(["vit12", "vim_einfft", "hydra_hybrid", "mvhybrid"], ["centering", "sinkhorn_knopp"], ["fp32"]),
        ("mvhybrid", "sinkhorn_knopp", "fp16"),
    ],
)
def test_a_step_waits_for_its_report_alone(small, arch, centering, dtype, monkeypatch, tmp_path):
    student = {"arch": arch, "embed_dim": 32, "num_heads": 2, "depth": 2, "drop_path_rate": 0.2, "layerscale": 1.0}
    optim = {"accumulate_steps": 2, "epochs": 4, "warmup_epochs": 1}
    precision = {"dtype": dtype}
    config = small(student=student, train={"centering": centering}, optim=optim, compute_precision=precision)
    trainer = Trainer(config, tmp_path / "run")
    if dtype == "fp16":  # a scale at which nothing overflows
        trainer.state.scaler.load_state_dict(trainer.state.scaler.state_dict() | {"scale": 1.0})
    feed = BatchFeed(iter(list(islice(trainer._batches(0), 4))))
    usable_backends("linear")  # tries oneDNN on a CPU, once
    tolist, lists = torch.Tensor.tolist, []
    # On a CPU these run no operator.
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: lists.append(tensor.shape) or tolist(tensor))
    monkeypatch.setattr(torch.Tensor, "numpy", None)
    for step in range(2):  # the first step makes the optimiser's state
        lists.clear()
        with Reads() as reads:
            report = trainer.step(feed, trainer.schedules.at(step))
        assert report.applied
        assert len(lists) == 1
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
