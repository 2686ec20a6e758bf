"""How student and teacher are shared among processes: activation checkpointing, then torch.compile, then DDP or FSDP2.

That order is fixed: a checkpointed block is compiled as a whole, and a compiled block is a unit of FSDP (whose units
inside a block then split it into several graphs). Units are the blocks of each backbone, the heads, and inside the
blocks what computes in float32 (the parameters of a scan, EinFFT): FSDP2 casts a unit's parameters together when it
gathers them, so these need units of their own. The teacher is sharded like the student and gets no gradients.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from shutil import which
from typing import Literal, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel

from dinov2.distributed.env import gather_vectors, world_size
from dinov2.layers.einfft import EinFFT
from dinov2.layers.hydra import HydraScan
from dinov2.layers.scan import SelectiveScan
from dinov2.models.isotropic import IsotropicBackbone
from dinov2.train.ssl_meta_arch import SSLMetaArch
from dinov2.utils.errors import ConfigError
from dinov2.utils.schema import ParallelSection

GRAPHS = 64  # that torch.compile may make of a block's code
Strategy = Literal["none", "ddp", "fsdp", "hsdp"]


def float32_modules(model: nn.Module) -> list[nn.Module]:
    """Return the submodules of `model` that compute in float32 whatever the precision of the layers around them."""
    return [module for module in model.modules() if isinstance(module, SelectiveScan | HydraScan | EinFFT)]


def node_sizes(local_size: int) -> list[int]:
    """Return the numbers of processes that nodes have, from the smallest, given this node's; all processes must ask."""
    return sorted({int(size) for size in gather_vectors(torch.tensor([local_size])).flatten()})


def resolve_strategy(strategy: str, processes: int, sizes: Sequence[int]) -> Strategy:
    """Return the strategy to use with so many processes; one has nothing to share.

    `auto` shards within a node, where links are fast, and sends gradients only between nodes (docs/scaling.md): `fsdp`
    on one node, `hsdp` on several that have equally many processes, `ddp` where they have one each or unequally many.

    Args:
        strategy: the configuration's.
        processes: on all nodes.
        sizes: the numbers of processes that nodes have, from the smallest; several where these differ.

    Raises:
        ConfigError: `none` with several processes; `hsdp` on nodes of unequal numbers of processes.
    """
    if processes == 1:
        return "none"
    if strategy == "none":
        raise ConfigError(
            f"parallel.strategy = none: {processes} processes were started, each would train a model of its own; use "
            "auto, ddp, fsdp or hsdp"
        )
    if strategy == "hsdp" and len(sizes) > 1:
        raise ConfigError(
            f"parallel.strategy = hsdp: some nodes have {sizes[0]} processes, others {sizes[-1]}; start as many on "
            "every node, or use ddp or fsdp"
        )
    if strategy != "auto":
        return cast(Strategy, strategy)
    if sizes[-1] == processes:
        return "fsdp"
    return "hsdp" if len(sizes) == 1 and sizes[0] > 1 else "ddp"


def parallelize(
    arch: SSLMetaArch, section: ParallelSection, device: torch.device, param_dtype: torch.dtype | None, local_size: int
) -> nn.Module:
    """Apply checkpointing, compilation and sharding to `arch` in place; return the module to call for the losses.

    Args:
        arch: student and teacher, on `device`.
        section: the configuration's `parallel`.
        device: of this process.
        param_dtype: FSDP's dtype of gathered parameters and activations; None leaves them as they are stored.
        local_size: processes on this node, the size of a group that shards with `hsdp`.

    Raises:
        ConfigError: see `resolve_strategy`; no compiler to compile.
    """
    strategy = resolve_strategy(section.strategy, world_size(), node_sizes(local_size))
    if section.compile and device.type == "cpu" and not (os.environ.get("CXX") or which("g++") or which("clang++")):
        raise ConfigError(
            "parallel.compile = true: on a CPU torch.compile needs a C++ compiler, and there is no g++ or clang++ (nor "
            "is CXX set); install one, or use false"
        )
    blocks = arch.student_backbone.blocks
    for index, block in enumerate(blocks if section.activation_checkpointing else ()):
        blocks[index] = checkpoint_wrapper(block)
    if section.compile:
        # Two kinds of block, for student and teacher, the last also for some tokens of a fixed and of any number: eight
        # graphs of one function, and one a block where the rates of dropped paths grow. After eight PyTorch would leave
        # the rest uncompiled, with but a warning.
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, GRAPHS)
        for block in [*blocks, *arch.teacher_backbone.blocks]:
            block.compile()
    if strategy == "ddp":
        # A step without masked patches leaves the mask token without a gradient.
        return DistributedDataParallel(
            arch, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
        )
    if strategy != "none":
        if strategy == "fsdp":
            mesh = init_device_mesh(device.type, (world_size(),), mesh_dim_names=("shard",))
        else:
            mesh = hsdp_mesh(device.type, local_size, timedelta(minutes=section.timeout_minutes))
        reduce_dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[section.reduce_dtype]
        policy = MixedPrecisionPolicy(param_dtype, reduce_dtype or (torch.float32 if param_dtype else None))
        for modules in (arch.student, arch.teacher):
            for module in modules.values():
                if isinstance(module, IsotropicBackbone):
                    shard_backbone(module, mesh, policy, section.reshard_after_forward)
                else:
                    shard_head(module, mesh, policy, section.reshard_after_forward)
    return arch


def hsdp_mesh(device_type: str, local_size: int, timeout: timedelta) -> DeviceMesh:
    """Return the mesh (nodes, processes of a node); collectives along its axes wait for `timeout` at most."""
    ranks = torch.arange(world_size()).view(-1, local_size)  # (nodes, processes of a node)
    # init_device_mesh would make groups with PyTorch's own timeout.
    shards, _ = dist.new_subgroups_by_enumeration(ranks.tolist(), timeout=timeout)
    copies, _ = dist.new_subgroups_by_enumeration(ranks.T.tolist(), timeout=timeout)
    groups = cast(list[dist.ProcessGroup], [copies, shards])  # every process is in one of each
    return DeviceMesh.from_group(groups, device_type, ranks, mesh_dim_names=("replicate", "shard"))


def shard_axis(shape: tuple[int, ...], shards: int) -> int:
    """Return the axis along which to cut a parameter: the first that leaves no rest, else the first.

    FSDP2 fills up the last pieces of a cut with a rest: a position embedding (1, 257, 384) would travel as 8 on 8
    processes.
    """
    return next((axis for axis, size in enumerate(shape) if size % shards == 0), 0)


def shard_backbone(
    model: IsotropicBackbone, mesh: DeviceMesh, policy: MixedPrecisionPolicy, reshard_after_forward: bool = True
) -> None:
    """Shard `model` in place over `mesh`: a unit a float32 module, a unit a block, the rest in the root's unit.

    Args:
        model: the backbone; its parameters remain stored and optimised in their own dtype, float32.
        mesh: one axis of processes, or two (copies, shards), on the device where the model runs.
        policy: dtypes of gathered parameters, activations and gradients' averages; the modules of `float32_modules`
            keep their parameters' dtype and take their inputs as they come.
        reshard_after_forward: free a unit's gathered parameters after its forward and gather them again in the
            backward (less memory, more traffic). The root, needed last and first, keeps its own.
    """
    # A frozen model has no backward that would end its gathered state.
    trained = any(parameter.requires_grad for parameter in model.parameters())
    reshard = reshard_after_forward or not trained
    for module in float32_modules(model):
        _shard(module, mesh, MixedPrecisionPolicy(cast_forward_inputs=False), reshard)
    for block in model.blocks:
        _shard(block, mesh, policy, reshard)
    _shard(model, mesh, policy, not trained)
    # Parameters are gathered around `forward` only, unless told of the other ways in.
    for method in ("forward_features", "forward_features_list", "forward_selected", "get_intermediate_layers"):
        register_fsdp_forward_method(model, method)


def shard_head(
    head: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy, reshard_after_forward: bool = True
) -> None:
    """Shard a DINO head in place: its last layer, the prototypes, is a unit, the layers before it another."""
    reshard = reshard_after_forward or not any(parameter.requires_grad for parameter in head.parameters())
    for module in (head.get_submodule("last_layer"), head):
        _shard(module, mesh, policy, reshard)


def _shard(module: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy, reshard_after_forward: bool) -> None:
    """Make a module a unit of FSDP2."""
    shards = mesh.size(mesh.ndim - 1)

    def placement(parameter: nn.Parameter) -> Shard:
        return Shard(shard_axis(tuple(parameter.shape), shards))

    fully_shard(
        module,
        mesh=mesh,
        mp_policy=policy,
        reshard_after_forward=reshard_after_forward,
        shard_placement_fn=placement,
    )
