"""Training checkpoints in torch.distributed.checkpoint's layout, with one process or many, written in the background.

    checkpoints/<iteration>/            appears by one rename, so that a folder of that name is complete
        .metadata, __0_0.distcp         student, teacher, centres, optimiser, scaler, RNG, iteration: tensors only
        teacher.safetensors             the teacher's backbone, complete: what evaluation needs
        checkpoint.json                 iteration, samples seen, global batch size, version; size and checksum of every
                                        other file
    checkpoints/latest                  a link to the newest, moved last

A save copies the state to host memory, which is all that training waits for; a thread then writes it to a temporary
folder, reads the teacher's backbone from there, flushes all to disk and renames the folder. One that fails, on a full
disk for instance, says so and is removed: training and the checkpoints before it are untouched.
"""

import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

import dinov2
from dinov2.distributed import checkpoint_folder, checkpoint_sums
from dinov2.distributed.checkpoint_reader import read_state, read_whole
from dinov2.distributed.env import is_distributed, rank, world_size
from dinov2.distributed.training_state import TrainingState, full_state_dict, host_copy, module_prefix
from dinov2.models.weights import TEACHER_FILE, save_backbone
from dinov2.utils.errors import CheckpointError
from dinov2.utils.files import write_text
from dinov2.utils.schema import SSLConfig

logger = logging.getLogger("dinov2")
T = TypeVar("T")


class Checkpointer:
    """Saves and restores the training state of a run, keeping its newest checkpoints and every `keep_every`-th.

    Args:
        run: the run folder, which also gets the newest `teacher.safetensors`.
        keep_last: checkpoints to keep besides those whose iteration is a multiple of `keep_every`.
        keep_every: iterations between the checkpoints that are kept for good.
        background: write a copy in a thread; without, `save` copies nothing, and returns when all is on disk.
        timeout_minutes: how long processes wait for each other to write.

    All processes make one, and call its methods together.
    """

    def __init__(
        self, run: Path, keep_last: int, keep_every: int, background: bool = True, timeout_minutes: float = 30.0
    ) -> None:
        self.run, self.folder = run, run / "checkpoints"
        self.keep_last, self.keep_every = keep_last, keep_every
        self.background = background
        # A group of its own: the thread's collectives must not mix with those of training.
        self._group = _new_group(timeout_minutes) if is_distributed() else None
        self._thread = ThreadPoolExecutor(1, "checkpoint", *_same_cuda_device())
        self._writing: Future[str] | None = None
        # Checkpoints without a process group are meant here.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")

    def save(self, state: TrainingState, teacher: nn.Module, iteration: int, config: SSLConfig) -> None:
        """Begin to write the state after `iteration` steps, with its backbone `teacher`, a part of it, also apart.

        Returns as soon as training may go on. A failure to write is logged; `wait` tells of it.
        """
        began = time.perf_counter()
        self.wait()
        if iteration in self.iterations():
            return
        waited = time.perf_counter() - began
        tensors = state.tensors(iteration)
        if self.background:
            tensors = host_copy(tensors)
        stalled = time.perf_counter() - began
        if waited > 1 and rank() == 0:
            logger.warning("training waited %.1f s for the checkpoint before; save less often", waited)
        prefix = module_prefix(state.arch, teacher)
        self._start(lambda: self._write(tensors, prefix, iteration, config, stalled))

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

        A damaged one is set aside as `<iteration>.damaged` when one before it can be used. What killed saves have left
        is removed.

        Raises:
            CheckpointError: the newest readable one is of another architecture (the names that differ), or there are
                checkpoints, but none of them can be read.
        """
        if rank() == 0:
            checkpoint_folder.remove_unfinished(self.folder)
        damaged: dict[Path, str] = {}
        for iteration in reversed(self.iterations()):
            path = self.folder / str(iteration)
            try:
                self._require_undamaged(path)
                state.load(read_state(path, state))
            except CheckpointError:
                raise
            # Damage shows as many kinds of exception, of which the second is no Exception.
            except (Exception, CheckpointException) as error:
                damaged[path] = _last_line(error)
            else:
                self._on_rank_0(partial(_set_aside, damaged, iteration))
                return iteration
        if damaged:
            reasons = "\n  ".join(f"{path}: {reason}" for path, reason in damaged.items())
            raise CheckpointError(
                f"none of the run's checkpoints can be read:\n  {reasons}\nRepair what keeps them from being read, or "
                "start anew with another --output-dir"
            )
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
        prefix: str,
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
        sums: checkpoint_sums.Sums = {}
        if not problem:
            sums, problem = self._sum_shards(temporary)
        if not problem:
            model = tensors["model"]
            problem = self._on_rank_0(lambda: self._complete(temporary, model, prefix, sums, iteration, config))
        if rank() == 0 and problem:
            shutil.rmtree(temporary, ignore_errors=True)
            logger.error(
                "CHECKPOINT %d COULD NOT BE WRITTEN: %s. Training goes on; there are checkpoints of steps %s",
                *(iteration, problem, checkpoint_folder.iterations(self.folder)),
            )
        elif rank() == 0:
            seconds = time.perf_counter() - began
            waited = stalled if self.background else stalled + seconds
            logger.info("checkpoint %d: training waited %.2f s, written in %.2f s", iteration, waited, seconds)
        return problem

    def _export(self, weights: dict[str, torch.Tensor], iteration: int, config: SSLConfig) -> str:
        return self._attempt_teacher(lambda: save_backbone(self.run / TEACHER_FILE, weights, config, iteration))

    def _attempt_teacher(self, write: Callable[[], None]) -> str:
        """Write the run's teacher; a failure is said and returned, and no failure of what else is being done."""
        try:
            write()
        except Exception as error:
            logger.error("%s COULD NOT BE WRITTEN: %s. Training goes on", self.run / TEACHER_FILE, _last_line(error))
            return _last_line(error)
        return ""

    def _sum_shards(self, temporary: Path) -> tuple[checkpoint_sums.Sums, str]:
        """Return the checksums of what all processes have saved, each of its own files, and what went wrong."""
        sums: checkpoint_sums.Sums = {}
        problem = ""
        try:
            sums = checkpoint_sums.file_sums(temporary, checkpoint_sums.shard_names(temporary, rank()))
        except OSError as error:
            problem = _last_line(error)
        gathered = self._gather((sums, problem))
        problems = [problem for _, problem in gathered if problem]
        return {name: value for part, _ in gathered for name, value in part.items()}, "".join(problems[:1])

    def _complete(
        self,
        temporary: Path,
        model: dict[str, torch.Tensor],
        prefix: str,
        sums: checkpoint_sums.Sums,
        iteration: int,
        config: SSLConfig,
    ) -> None:
        """Add what one process writes, give the folder its name, and remove old ones."""
        # From the files, where it is whole already: gathering it would keep training waiting.
        save_backbone(temporary / TEACHER_FILE, read_whole(temporary, model, prefix), config, iteration)
        about = {
            "iteration": iteration,
            "global_batch_size": config.train.global_batch_size,
            "samples": iteration * (config.train.global_batch_size or 0),
            "version": dinov2.__version__,
            "files": sums | checkpoint_sums.file_sums(temporary, (".metadata", TEACHER_FILE)),
        }
        write_text(temporary / checkpoint_sums.ABOUT, json.dumps(about, indent=2))
        target = self.folder / str(iteration)
        checkpoint_folder.publish(temporary, target)
        for old in checkpoint_folder.iterations(self.folder)[: -self.keep_last]:
            if old % self.keep_every:
                checkpoint_folder.remove(self.folder, old)
        self._attempt_teacher(lambda: checkpoint_folder.share_file(target / TEACHER_FILE, self.run / TEACHER_FILE))

    def _require_undamaged(self, path: Path) -> None:
        """Raise OSError, on all processes, where a file is not what was written; each process reads some of them."""
        problems = self._gather(checkpoint_sums.find_damage(path, rank(), world_size()))
        if any(problems):
            raise OSError(next(filter(None, problems)))

    def _gather(self, value: T) -> list[T]:
        """Return the values of all processes to all of them."""
        values = [value] * world_size()
        if self._group is not None:
            dist.all_gather_object(values, value, group=self._group)
        return values

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


def _set_aside(damaged: dict[Path, str], used: int) -> None:
    """Rename damaged checkpoints, now that one before them is in use."""
    for path, reason in damaged.items():
        aside = path.with_name(f"{path.name}.damaged")
        checkpoint_folder.replace_folder(path, aside)
        logger.warning("checkpoint %s is damaged (%s): now %s; using that of step %d", path, reason, aside, used)


def _new_group(timeout_minutes: float) -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=timedelta(minutes=timeout_minutes))
    return cast(dist.ProcessGroup, group)


def _same_cuda_device() -> tuple[Callable[[int], None], tuple[int]] | tuple[()]:
    """Return what lets a new thread begin on this thread's CUDA device, and not on the first."""
    if not torch.cuda.is_initialized():
        return ()
    return torch.cuda.set_device, (torch.cuda.current_device(),)


def _last_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[-1] if text else type(error).__name__
