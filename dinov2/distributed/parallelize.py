"""Sharding a backbone over processes with FSDP2 (`fully_shard`), with its sensitive parts in float32.

Mixed precision of FSDP2 belongs to a unit: the parameters of a unit are cast together when they are gathered. What must
stay in float32 (the parameters of a scan, EinFFT) is therefore a unit of its own inside the unit of its block.
"""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from dinov2.layers.einfft import EinFFT
from dinov2.layers.hydra import HydraScan
from dinov2.layers.scan import SelectiveScan
from dinov2.models.isotropic import IsotropicBackbone


def float32_modules(model: nn.Module) -> list[nn.Module]:
    """Return the submodules of `model` that compute in float32 whatever the precision of the layers around them."""
    return [module for module in model.modules() if isinstance(module, SelectiveScan | HydraScan | EinFFT)]


def shard_backbone(
    model: IsotropicBackbone,
    mesh: DeviceMesh,
    param_dtype: torch.dtype,
    reduce_dtype: torch.dtype = torch.float32,
    reshard_after_forward: bool = True,
) -> None:
    """Shard `model` in place over `mesh`: a unit a float32 module, a unit a block, the rest in the root's unit.

    Args:
        model: the backbone, with float32 parameters, which remain the ones that are stored and optimised.
        mesh: one axis of processes, on the device where the model runs.
        param_dtype: dtype of parameters and activations in the forward and backward; the modules of `float32_modules`
            keep float32 parameters and take their inputs as they come.
        reduce_dtype: dtype in which gradients are averaged over processes.
        reshard_after_forward: free a unit's gathered parameters after its forward and gather them again in the
            backward (less memory, more traffic). The root, needed last and first, keeps its own.
    """
    exact = MixedPrecisionPolicy(torch.float32, torch.float32, cast_forward_inputs=False)
    policy = MixedPrecisionPolicy(param_dtype, reduce_dtype)
    for module in float32_modules(model):
        fully_shard(module, mesh=mesh, mp_policy=exact, reshard_after_forward=reshard_after_forward)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    # Parameters are gathered around `forward` only, unless told of the other ways in.
    for method in ("forward_features", "forward_features_list", "get_intermediate_layers"):
        register_fsdp_forward_method(model, method)
