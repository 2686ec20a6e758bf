"""Training checkpoints in torch.distributed.checkpoint's layout, with one process or many, written in the background.

    checkpoints/<iteration>/            appears by one rename, so that a folder of that name is complete
        .metadata, __0_0.distcp         student, teacher, centres, optimiser, scaler, RNG, iteration: tensors only
        teacher.safetensors             the teacher's backbone, complete: what evaluation needs
        checkpoint.json                 iteration, samples seen, global batch size, version
    checkpoints/latest                  a link to the newest, moved last

A save copies the state to host memory, which is all that training waits for; a thread then writes it to a temporary
folder, flushes it to disk and renames it. One that fails, on a full disk for instance, says so and is removed: training
and the checkpoints before it are untouched.
"""

import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Container
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import dinov2
from dinov2.distributed import checkpoint_folder
from dinov2.distributed.env import barrier, is_distributed, rank
from dinov2.distributed.training_state import OPTIONAL, TrainingState, full_state_dict, host_copy
from dinov2.models.weights import TEACHER_FILE, save_backbone
from dinov2.utils.errors import CheckpointError
from dinov2.utils.files import write_text
from dinov2.utils.schema import SSLConfig
from dinov2.utils.state_dict import shapes_of, state_differences

logger = logging.getLogger("dinov2")
T = TypeVar("T")


class Checkpointer:
    """Saves and restores the training state of a run, keeping its newest checkpoints and every `keep_every`-th.

    Args:
        run: the run folder, which also gets the newest `teacher.safetensors`.
        keep_last: checkpoints to keep besides those whose iteration is a multiple of `keep_every`.
        keep_every: iterations between the checkpoints that are kept for good.
        background: write in a thread; without, `save` returns when all is on disk.

    All processes make one, and call its methods together.
    """

    def __init__(self, run: Path, keep_last: int, keep_every: int, background: bool = True) -> None:
        self.run, self.folder = run, run / "checkpoints"
        self.keep_last, self.keep_every = keep_last, keep_every
        self.background = background
        # A group of its own: the thread's collectives must not mix with those of training.
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo")) if is_distributed() else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[str] | None = None
        # Checkpoints without a process group are meant here.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")

    def save(self, state: TrainingState, teacher: nn.Module, iteration: int, config: SSLConfig) -> None:
        """Begin to write the state after `iteration` steps, with its backbone `teacher` apart.

        Returns as soon as training may go on. A failure to write is logged; `wait` tells of it.
        """
        began = time.perf_counter()
        self.wait()
        if iteration in self.iterations():
            return
        waited = time.perf_counter() - began
        tensors = host_copy(state.tensors(iteration))
        weights = full_state_dict(teacher)
        stalled = time.perf_counter() - began
        if waited > 1:
            logger.warning("training waited %.1f s for the checkpoint before; save less often", waited)
        self._start(lambda: self._write(tensors, weights, iteration, config, stalled))

    def export(self, teacher: nn.Module, iteration: int, config: SSLConfig) -> None:
        """Write the run folder's `teacher.safetensors` alone, in the background like a checkpoint."""
        self.wait()
        weights = full_state_dict(teacher)
        if rank() == 0:
            self._start(lambda: self._export(weights, iteration, config))

    def wait(self) -> str:
        """Wait until the last save is on disk; return what went wrong with it, on some process, or ''."""
        return self._writing.result() if self._writing else ""

    def restore(self, state: TrainingState) -> int:
        """Load the newest readable checkpoint into `state`; return its iteration, 0 without any.

        A damaged one is set aside as `<iteration>.damaged`, and the one before it is used. What killed saves have left
        is removed.

        Raises:
            CheckpointError: the newest readable one is of another architecture (the names that differ), or there are
                checkpoints, but none of them can be read.
        """
        if rank() == 0:
            checkpoint_folder.remove_unfinished(self.folder)
        failures = []
        for iteration in reversed(self.iterations()):
            path = self.folder / str(iteration)
            try:
                return state.load(read_state(path, state))
            except CheckpointError:
                raise
            # Damage shows as many kinds of exception, of which the second is no Exception.
            except (Exception, CheckpointException) as error:
                reason = _last_line(error)
                aside = path.with_name(f"{iteration}.damaged")
                barrier()
                if rank() == 0:
                    checkpoint_folder.replace_folder(path, aside)
                barrier()
                if rank() == 0:
                    logger.warning("checkpoint %s is damaged (%s): now %s; trying the one before", path, reason, aside)
                failures.append(f"{aside}: {reason}")
        if failures:
            raise CheckpointError("none of the run's checkpoints can be read:\n  " + "\n  ".join(failures))
        return 0

    def iterations(self) -> list[int]:
        """Return the iterations that have a checkpoint, in ascending order, as rank 0 sees them."""
        return self._from_rank_0(lambda: checkpoint_folder.iterations(self.folder))

    def _start(self, work: Callable[[], str]) -> None:
        self._writing = self._thread.submit(work)
        if not self.background:
            self.wait()

    def _write(
        self,
        tensors: dict[str, Any],
        weights: dict[str, torch.Tensor],
        iteration: int,
        config: SSLConfig,
        stalled: float,
    ) -> str:
        """Write, in the thread of every process, and return what went wrong anywhere."""
        began = time.perf_counter()
        temporary = checkpoint_folder.unfinished(self.folder, iteration)
        problem = self._on_rank_0(lambda: checkpoint_folder.make_empty(temporary))
        if not problem:
            try:
                save(tensors, checkpoint_id=temporary, process_group=self._group)
            except (Exception, CheckpointException) as error:  # raised on all processes
                problem = _last_line(error)
        if not problem:
            problem = self._on_rank_0(lambda: self._complete(temporary, weights, iteration, config))
        if rank() == 0 and problem:
            shutil.rmtree(temporary, ignore_errors=True)
            logger.error(
                "CHECKPOINT %d COULD NOT BE WRITTEN: %s. Training goes on; there are checkpoints of steps %s",
                *(iteration, problem, checkpoint_folder.iterations(self.folder)),
            )
        elif rank() == 0:
            seconds = time.perf_counter() - began
            logger.info("checkpoint %d: training waited %.2f s, written in %.2f s", iteration, stalled, seconds)
        return problem

    def _export(self, weights: dict[str, torch.Tensor], iteration: int, config: SSLConfig) -> str:
        try:
            save_backbone(self.run / TEACHER_FILE, weights, config, iteration)
        except Exception as error:
            logger.error("%s COULD NOT BE WRITTEN: %s. Training goes on", self.run / TEACHER_FILE, _last_line(error))
            return _last_line(error)
        return ""

    def _complete(self, temporary: Path, weights: dict[str, torch.Tensor], iteration: int, config: SSLConfig) -> None:
        """Add what one process writes, give the folder its name, and remove old ones."""
        save_backbone(temporary / TEACHER_FILE, weights, config, iteration)
        about = {
            "iteration": iteration,
            "global_batch_size": config.train.global_batch_size,
            "samples": iteration * (config.train.global_batch_size or 0),
            "version": dinov2.__version__,
        }
        write_text(temporary / "checkpoint.json", json.dumps(about, indent=2))
        target = self.folder / str(iteration)
        checkpoint_folder.publish(temporary, target)
        checkpoint_folder.share_file(target / TEACHER_FILE, self.run / TEACHER_FILE)
        for old in checkpoint_folder.iterations(self.folder)[: -self.keep_last]:
            if old % self.keep_every:
                shutil.rmtree(self.folder / str(old), ignore_errors=True)

    def _on_rank_0(self, action: Callable[[], None]) -> str:
        """Do something on rank 0 while the others wait; return to all of them what went wrong."""

        def attempt() -> str:
            try:
                action()
            except Exception as error:
                return _last_line(error)
            return ""

        return self._from_rank_0(attempt)

    def _from_rank_0(self, value: Callable[[], T]) -> T:
        """Compute something on rank 0 for all: network file systems do not show everybody the same at once."""
        values: list[Any] = [value() if rank() == 0 else None]
        if self._group is not None:
            dist.broadcast_object_list(values, src=0, group=self._group)
        return cast(T, values[0])


def read_state(path: Path, state: TrainingState) -> dict[str, Any]:
    """Read a checkpoint folder into the tensors of `state`, and return them as `TrainingState.load` takes them.

    Raises:
        CheckpointError: it is of another architecture.
        Exception: of many kinds, when it is damaged.
    """
    tensors = state.tensors(0)
    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    _require_same_parameters(tensors["model"], stored, path)
    there = {part: _present(tensors[part], f"{part}.", stored) for part in OPTIONAL}
    load(tensors | there, checkpoint_id=path)  # in place: moments that are not there stay those of a fresh optimiser
    return tensors | {part: there[part] for part in ("rng", "scaler")}


def _present(tensors: dict[str, Any], prefix: str, stored: Container[str]) -> dict[str, Any]:
    """Return those of a tree's tensors that are stored, under their dotted names."""
    found = {}
    for name, value in tensors.items():
        if isinstance(value, dict):
            found[name] = _present(value, f"{prefix}{name}.", stored)
        elif f"{prefix}{name}" in stored:
            found[name] = value
    return found


def _require_same_parameters(model: dict[str, torch.Tensor], stored: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError naming the parameters in which a checkpoint and the model differ."""
    there = {name.removeprefix("model."): tuple(e.size) for name, e in stored.items() if name.startswith("model.")}
    if differences := state_differences(shapes_of(model), there):
        raise CheckpointError(
            f"checkpoint {path} is of another architecture: {differences}. Use the configuration it was trained with, "
            "or another --output-dir"
        )


def _last_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[-1] if text else type(error).__name__
