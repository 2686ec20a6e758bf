"""The teacher's update: one foreach call, in place, for plain and for sharded parameters."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from dinov2.distributed.parallelize import parallelize
from dinov2.train.ssl_meta_arch import SSLMetaArch


class Operators(TorchDispatchMode):
    """Lists the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def group():
    """One process that is a group of its own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def values(module):
    return [(p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for p in module.parameters()]


def storages(module):
    local = [p.to_local() if isinstance(p, DTensor) else p for p in module.parameters()]
    return [p.untyped_storage().data_ptr() for p in local]


def check(arch):
    with torch.no_grad():
        for p in arch.student.parameters():
            p.add_(1.0)
    before, student, places = values(arch.teacher), values(arch.student), storages(arch.teacher)
    with Operators() as operators:
        arch.update_teacher(0.9)
    assert [name for name in operators.names if name not in ("view", "detach", "alias")] == ["_foreach_lerp_"]
    assert storages(arch.teacher) == places
    for found, old, new in zip(values(arch.teacher), before, student, strict=True):
        torch.testing.assert_close(found, 0.9 * old + 0.1 * new)
    assert all(torch.equal(p, old) for p, old in zip(values(arch.student), student, strict=True))


def test_plain_parameters(small):
    check(SSLMetaArch(small()))


@pytest.mark.parametrize("strategy", ["fsdp", "hsdp"])
def test_sharded_parameters(small, strategy, group, monkeypatch):
    config = small(parallel={"strategy": strategy})
    arch = SSLMetaArch(config)
    monkeypatch.setattr("dinov2.distributed.parallelize.resolve_strategy", lambda *args: strategy)
    parallelize(arch, config.parallel, torch.device("cpu"), None, 1)
    assert all(isinstance(p, DTensor) for p in arch.teacher.parameters())
    check(arch)
