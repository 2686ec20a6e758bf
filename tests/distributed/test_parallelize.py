"""The groups of processes that hsdp makes."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from dinov2.distributed.parallelize import hsdp_mesh, node_sizes


@pytest.fixture
def group():
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(minutes=5))
    yield
    dist.destroy_process_group()


def test_groups_of_hsdp_wait_as_long_as_they_are_told(group):
    mesh = hsdp_mesh("cpu", 1, timedelta(minutes=7))
    assert (mesh.shape, mesh.mesh_dim_names) == ((1, 1), ("replicate", "shard"))
    for name in ("replicate", "shard"):
        backend = mesh.get_group(name)._get_backend(torch.device("cpu"))
        assert backend.options._timeout == timedelta(minutes=7)


def test_nodes_and_their_processes():
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    dist.init_process_group("fake", store=fake.FakeStore(), rank=5, world_size=8)
    try:
        mesh = hsdp_mesh("cpu", 4, timedelta(minutes=7))
        assert mesh.mesh.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert dist.get_process_group_ranks(mesh.get_group("shard")) == [4, 5, 6, 7]
        assert dist.get_process_group_ranks(mesh.get_group("replicate")) == [1, 5]
    finally:
        dist.destroy_process_group()
    assert node_sizes(1) == [1]
