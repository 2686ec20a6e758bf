"""Training checkpoints in torch.distributed.checkpoint's layout, with one process or many.

    checkpoints/<iteration>/            appears by one rename, so that a folder of that name is complete
        .metadata, __0_0.distcp         student, teacher, centres, optimiser, RNG, iteration: tensors only
        teacher.safetensors             the teacher's backbone, complete: what evaluation needs
        checkpoint.json                 iteration, samples seen, global batch size, version

Everything stored is a tensor under its parameter's full name, so that loading does not depend on how many processes
wrote it.
"""

import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import dinov2
from dinov2.distributed.env import barrier, rank
from dinov2.models.weights import TEACHER_FILE, save_backbone
from dinov2.utils.errors import CheckpointError
from dinov2.utils.files import write_text
from dinov2.utils.schema import SSLConfig
from dinov2.utils.state_dict import shapes_of, state_differences

logger = logging.getLogger("dinov2")


@dataclass(frozen=True)
class Checkpointer:
    """Saves and restores the training state of a run under `folder`, keeping the newest and every `keep_every`-th."""

    folder: Path
    keep_last: int
    keep_every: int

    def save(
        self,
        arch: nn.Module,
        teacher: nn.Module,
        optimizer: torch.optim.Optimizer,
        iteration: int,
        config: SSLConfig,
    ) -> Path:
        """Write the state of `arch` after `iteration` steps, with its backbone `teacher` apart; return the folder."""
        target = self.folder / str(iteration)
        if target.is_dir():
            return target
        temporary = self.folder / f".{iteration}.tmp"
        if rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        barrier()
        with _quiet_about_one_process():
            save(_state(arch, optimizer, iteration), checkpoint_id=temporary)
        weights = full_state_dict(teacher)
        if rank() == 0:
            self._complete(temporary, target, weights, iteration, config)
        barrier()
        return target

    def _complete(
        self, temporary: Path, target: Path, weights: dict[str, torch.Tensor], iteration: int, config: SSLConfig
    ) -> None:
        """Add what one process writes, give the folder its name, and remove old ones."""
        save_backbone(temporary / TEACHER_FILE, weights, config, iteration)
        about = {
            "iteration": iteration,
            "global_batch_size": config.train.global_batch_size,
            "samples": iteration * (config.train.global_batch_size or 0),
            "version": dinov2.__version__,
        }
        write_text(temporary / "checkpoint.json", json.dumps(about, indent=2))
        _sync_folder(temporary)
        os.replace(temporary, target)
        _sync_folder(self.folder)
        self._remove_old()

    def restore(self, arch: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Load the newest readable checkpoint into `arch` and `optimizer`; return its iteration, 0 without any.

        A damaged one is set aside as `<iteration>.damaged`, and the one before it is used.

        Raises:
            CheckpointError: the newest readable one is of another architecture (the names that differ), or there are
                checkpoints, but none of them can be read.
        """
        failures = []
        for iteration in reversed(self.iterations()):
            path = self.folder / str(iteration)
            state = _state(arch, optimizer, 0)
            try:
                stored = FileSystemReader(path).read_metadata().state_dict_metadata
                _require_same_parameters(state["model"], stored, path)
                # A run that began on a CPU has no CUDA generator to restore.
                state["rng"] = {name: value for name, value in state["rng"].items() if f"rng.{name}" in stored}
                with _quiet_about_one_process():
                    load(state, checkpoint_id=path)
            except CheckpointError:
                raise
            # Damage shows as many kinds of exception, of which the second is no Exception.
            except (Exception, CheckpointException) as error:
                reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
                aside = path.with_name(f"{iteration}.damaged")
                barrier()
                if rank() == 0:
                    shutil.rmtree(aside, ignore_errors=True)
                    os.replace(path, aside)
                barrier()
                logger.warning("checkpoint %s cannot be read (%s): now %s; trying the one before", path, reason, aside)
                failures.append(f"{aside}: {reason}")
                continue
            return _apply(state, arch, optimizer)
        if failures:
            raise CheckpointError("none of the run's checkpoints can be read:\n  " + "\n  ".join(failures))
        return 0

    def iterations(self) -> list[int]:
        """Return the iterations that have a checkpoint, in ascending order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit() and path.is_dir())

    def _remove_old(self) -> None:
        for iteration in self.iterations()[: -self.keep_last]:
            if iteration % self.keep_every:
                shutil.rmtree(self.folder / str(iteration), ignore_errors=True)


def full_state_dict(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the whole state of a module, sharded or not, on rank 0's CPU; all processes must call it."""
    state = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return cast(dict[str, torch.Tensor], state)


def _state(arch: nn.Module, optimizer: torch.optim.Optimizer, iteration: int) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(arch),
        # Rates and decay follow from the schedules and are not state.
        "optimizer": get_optimizer_state_dict(arch, optimizer)["state"],
        "iteration": torch.tensor(iteration),
        "rng": _rng_state(next(arch.parameters()).device),
    }


def _require_same_parameters(model: dict[str, torch.Tensor], stored: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError naming the parameters in which a checkpoint and the model differ."""
    there = {name.removeprefix("model."): tuple(e.size) for name, e in stored.items() if name.startswith("model.")}
    if differences := state_differences(shapes_of(model), there):
        raise CheckpointError(
            f"checkpoint {path} is of another architecture: {differences}. Use the configuration it was trained with, "
            "or another --output-dir"
        )


@contextmanager
def _quiet_about_one_process() -> Iterator[None]:
    """Silence the checkpoint library's remark that there is no process group: one process is no fault."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return this process's generators; one with other neighbours after a restart starts with fresh ones."""
    states = {f"{rank()}.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states[f"{rank()}.cuda"] = torch.cuda.get_rng_state(device)
    return states


def _apply(state: dict[str, Any], arch: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    set_model_state_dict(arch, state["model"])
    groups = get_optimizer_state_dict(arch, optimizer)["param_groups"]
    set_optimizer_state_dict(arch, optimizer, {"state": state["optimizer"], "param_groups": groups})
    for name, value in state["rng"].items():
        (torch.cuda if name.endswith("cuda") else torch).set_rng_state(value)
    return int(state["iteration"])


def _sync_folder(folder: Path) -> None:
    """Flush a folder's files and its entries to disk."""
    for path in [*(p for p in folder.iterdir() if p.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
