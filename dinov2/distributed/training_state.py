"""What a training run has to remember, as one tree of tensors under its parameters' full names.

Because the names are full and the tensors whole or sharded with their global shape, a state loads on any number of
processes, whatever number wrote it.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.utils._pytree import tree_map_only

from dinov2.distributed.env import rank

# Parts of which a checkpoint may lack some: moments of parameters that never had a gradient, generators of another
# device or rank, the scaler of a run in another precision.
OPTIONAL = ("optimizer", "rng", "scaler")


@dataclass(frozen=True)
class TrainingState:
    """The objects whose values are the state: student, teacher and centres; their optimiser; the loss scaler."""

    arch: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: GradScaler

    def tensors(self, iteration: int) -> dict[str, Any]:
        """Return the state after so many steps, without copying; the schedules and the data follow from the number."""
        return {
            "model": get_model_state_dict(self.arch),
            "optimizer": self._optimizer_state(),
            "iteration": torch.tensor(iteration),
            "scaler": _scaler_state(self.scaler),
            "rng": {f"{rank()}.{name}": value for name, value in rng_state(self.device).items()},
        }

    def load(self, state: dict[str, Any]) -> int:
        """Take over what `tensors` returned, less any of its optional parts; return the iteration."""
        set_model_state_dict(self.arch, state["model"])
        groups = get_optimizer_state_dict(self.arch, self.optimizer)["param_groups"]
        set_optimizer_state_dict(self.arch, self.optimizer, {"state": state["optimizer"], "param_groups": groups})
        if self.scaler.is_enabled() and state["scaler"]:
            stored = {name: value.item() for name, value in state["scaler"].items()}
            self.scaler.load_state_dict(self.scaler.state_dict() | stored)
        # A process with other neighbours after a restart finds none of its own, and goes on with fresh ones.
        set_rng_state({name.split(".")[1]: value for name, value in state["rng"].items()})
        return int(state["iteration"])

    def _optimizer_state(self) -> dict[str, Any]:
        """Return moments and step counts; rates and decay follow from the schedules and are not state."""
        before_any_update = not self.optimizer.state
        if before_any_update:
            self.optimizer.zero_grad(set_to_none=True)  # else there would be no entries to save, or to load into
        state = get_optimizer_state_dict(self.arch, self.optimizer)["state"]
        if before_any_update:
            for entries in self.optimizer.state.values():
                entries["step"].zero_()  # making the entries counted as a step
        return cast(dict[str, Any], state)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.arch.parameters()).device


def host_copy(state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of all tensors of a state in host memory, sharded ones with this process's part only."""
    copied = tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), state)
    return cast(dict[str, Any], copied)


def full_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return the whole state of a module, sharded or not, copied to rank 0's host; all processes must call it."""
    state = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if next(module.parameters()).device.type == "cpu":  # which is not offloaded, but handed out as it is
        state = host_copy(state)
    return cast(dict[str, Tensor], state)


def module_prefix(whole: nn.Module, part: nn.Module) -> str:
    """Return what the names of the tensors of `part`, a submodule of `whole` or `whole` itself, begin with."""
    name = next(name for name, module in whole.named_modules() if module is part)
    return f"{name}." if name else ""


def _scaler_state(scaler: GradScaler) -> dict[str, Tensor]:
    if not scaler.is_enabled():
        return {}
    values = scaler.state_dict()
    return {name: torch.tensor(values[name]) for name in ("scale", "_growth_tracker")}


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of this process's generators, by the kind of their device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_rng_state(states: dict[str, Tensor]) -> None:
    """Put this process's generators into the given states; a machine without CUDA leaves CUDA's aside."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
