"""The loop over training steps."""

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from tqdm.contrib.logging import logging_redirect_tqdm

from dinov2.data.collate import MultiCropBatch
from dinov2.data.datasets import TileDataset, make_dataset
from dinov2.data.errors import TooManyBadTilesError
from dinov2.data.loaders import MultiCropLoader, make_loader
from dinov2.distributed.checkpoint import Checkpointer, full_state_dict
from dinov2.distributed.env import all_reduce_max, all_reduce_sum, rank, world_size
from dinov2.distributed.parallelize import parallelize, resolve_strategy
from dinov2.logging.run_info import write_run_info
from dinov2.logging.sinks import MetricsLog
from dinov2.models.weights import TEACHER_FILE, load_backbone, save_backbone
from dinov2.ops.dispatch import force_backends
from dinov2.train.batch_plan import BatchPlan
from dinov2.train.interrupt import StopReason, StopRequest
from dinov2.train.optim import apply_schedule, build_optimizer
from dinov2.train.requeue import job_deadline, requeue_if_slurm
from dinov2.train.run_folder import check_run_folder, write_config
from dinov2.train.schedules import Schedules, StepValues
from dinov2.train.ssl_meta_arch import SSLMetaArch
from dinov2.utils.errors import CheckpointError, ConfigError, DivergenceError
from dinov2.utils.schema import SSLConfig
from dinov2.utils.state_dict import shapes_of, state_differences

logger = logging.getLogger("dinov2")


class Trainer:
    """Everything a run needs, from its configuration; `run` trains to the end or to a stop signal."""

    def __init__(
        self,
        config: SSLConfig,
        folder: Path,
        force: bool = False,
        device: torch.device | None = None,
        local_size: int = 1,
    ) -> None:
        """Prepare a run in `folder`, on `device` (as the configuration says, without) with `local_size` processes here.

        Raises:
            UserError: the configuration, the data or the folder cannot be used.
        """
        self.config, self.folder = config, folder
        self.device = device or torch.device(device_type(config.train.device))
        if config.train.num_threads:
            torch.set_num_threads(config.train.num_threads)
        force_backends(asdict(config.kernels))
        self.plan = BatchPlan.from_config(config.train, world_size())
        config.train.global_batch_size = self.plan.global_batch
        self.dataset = _open_dataset(config.train.dataset_path)
        check_run_folder(folder, config, force)
        train = config.train
        self.checkpointer = Checkpointer(
            folder / "checkpoints", train.keep_last_checkpoints, train.saveckp_freq * train.OFFICIAL_EPOCH_LENGTH
        )
        torch.manual_seed(train.seed)
        self.arch = self._make_arch()
        if not self.checkpointer.iterations():
            _load_pretrained(self.arch, config)
        self.arch.to(self.device).train()
        self.autocast_dtype = _autocast_dtype(config.compute_precision.dtype, self.device)
        self.objective = parallelize(self.arch, config.parallel, self.device, self.autocast_dtype, local_size)
        if rank():
            torch.manual_seed(train.seed + rank())  # processes drop other paths
        self.optimizer = build_optimizer(self.arch.student, config.optim)
        self.schedules = Schedules.from_config(config, self.plan.global_batch)

    def _make_arch(self) -> SSLMetaArch:
        return SSLMetaArch(self.config)

    def run(self) -> int:
        """Train from the newest checkpoint on; return 0 when all steps are done, 128 + signal when stopped by one.

        Raises:
            DivergenceError: the loss became NaN or infinite.
            UserError: too many tiles are damaged (the state is saved first), or no checkpoint can be read.
        """
        train = self.config.train
        start = step = self.checkpointer.restore(self.arch, self.optimizer)
        end = min(self.schedules.total_steps, train.max_steps or self.schedules.total_steps)
        if rank() == 0:
            write_config(self.folder, self.config)
        self._announce(start, end)
        sinks = MetricsLog(self.folder, start, end) if rank() == 0 else nullcontext()
        with StopRequest() as stop, logging_redirect_tqdm(), sinks as metrics:
            stop.stop_at(job_deadline(os.environ, train.stop_before_minutes))
            batches = iter(self._loader(start))
            while step < end and not (stopped := _agreed_reason(stop)):
                began = time.perf_counter()
                values = self.schedules.at(step)
                try:
                    numbers = self.step(batches, values)
                except TooManyBadTilesError:
                    if world_size() == 1:  # the others wait elsewhere
                        self._save(step)
                    raise
                if metrics and step % train.log_period_iterations == 0:
                    seconds = time.perf_counter() - began
                    speed = {"step_seconds": seconds, "images_per_second": self.plan.global_batch / seconds}
                    metrics.log(step, numbers | _schedule_values(values) | speed)
                if rank() == 0 and step == start:
                    self._write_run_info()
                step += 1
                if metrics:
                    metrics.advance()
                if step % train.checkpoint_period_iterations == 0 or step % self.checkpointer.keep_every == 0:
                    self._save(step)
                elif step % self.config.evaluation.eval_period_iterations == 0:
                    self._export(step)
            del batches  # ends the loader's workers
            self._save(step)  # still deaf to further signals
        if step < end:
            logger.warning("stopped at step %d of %d; run the same command again to go on", step, end)
            requeue_if_slurm(stopped, rank(), os.environ)
            return stopped.exit_code
        logger.info("finished %d steps; the teacher is in %s", step, self.folder / TEACHER_FILE)
        return 0

    def step(self, batches: Iterator[MultiCropBatch], values: StepValues) -> dict[str, float]:
        """Take one optimiser step on the next micro-batches.

        Returns the parts of the loss, the gradient norms and the seconds spent waiting for data. The check that all of
        them are finite is the step's one wait for the device.

        Raises:
            DivergenceError: a part of the loss or a gradient is NaN or infinite; the parameters have not changed.
            TooManyBadTilesError: see the loader; the parameters have not changed.
        """
        apply_schedule(self.optimizer, values)
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        waited = 0.0
        for micro in range(self.plan.accumulate):
            began = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - began
            with (
                torch.autocast(
                    self.device.type, self.autocast_dtype or torch.bfloat16, enabled=self.autocast_dtype is not None
                ),
                self._synchronised(last=micro == self.plan.accumulate - 1),
            ):
                parts = self.objective(batch.to(self.device, non_blocking=True), values.teacher_temp)
                (parts["total_loss"] / self.plan.accumulate).backward()
            for name, part in parts.items():
                sums[name] = sums.get(name, 0) + part.detach() / self.plan.accumulate
        numbers = _finite_numbers(sums | self._clip(), batch.step)
        self.optimizer.step()
        self.arch.update_teacher(values.momentum)
        return numbers | {"data_seconds": waited}

    def _clip(self) -> dict[str, Tensor]:
        """Clip the gradients of backbone and heads separately, as DINOv2 does; return their norms before."""
        limit = self.config.optim.clip_grad or float("inf")
        norms = {}
        for name, module in self.arch.student.items():
            norm = nn.utils.clip_grad_norm_(module.parameters(), limit)
            norms[f"grad_norm_{name}"] = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return norms

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Let DDP average gradients only after the last micro-batch."""
        if isinstance(self.objective, DistributedDataParallel) and not last:
            return self.objective.no_sync()
        return nullcontext()

    def _loader(self, start: int) -> MultiCropLoader:
        config = self.config
        return make_loader(
            self.dataset,
            config.crops,
            config.ibot,
            patch_size=config.student.patch_size,
            global_batch_size=self.plan.global_batch,
            seed=config.train.seed,
            num_workers=config.train.num_workers,
            start_step=start,
            rank=rank(),
            world_size=world_size(),
            accumulate=self.plan.accumulate,
            max_bad_fraction=config.data.max_bad_fraction,
            pin_memory=self.device.type == "cuda",
        )

    def _save(self, step: int) -> None:
        self.checkpointer.save(self.arch, self.arch.teacher_backbone, self.optimizer, step, self.config)
        self._export(step)

    def _export(self, step: int) -> None:
        weights = full_state_dict(self.arch.teacher_backbone)
        if rank() == 0:
            save_backbone(self.folder / TEACHER_FILE, weights, self.config, step)

    def _announce(self, start: int, end: int) -> None:
        spec = self.arch.student_backbone.spec
        count = sum(p.numel() for p in self.arch.student_backbone.parameters())
        logger.info(
            "%s: %d blocks of width %d, %s parameters; %d tiles; batch %d (%d x %d); on %s",
            *(spec.name, spec.depth, spec.embed_dim, f"{count:,}", len(self.dataset), self.plan.global_batch),
            *(self.plan.accumulate, self.plan.micro_batch, self.device),
        )
        if start:
            logger.info("resuming at step %d of %d", start, end)

    def _write_run_info(self) -> None:
        write_run_info(
            self.folder / "run.json",
            self.device,
            precision=str(self.autocast_dtype or torch.float32).removeprefix("torch."),
            tiles=len(self.dataset),
            global_batch_size=self.plan.global_batch,
            parameters=sum(p.numel() for p in self.arch.student_backbone.parameters()),
            processes=world_size(),
            strategy=resolve_strategy(self.config.parallel.strategy, world_size()),
        )


def _open_dataset(path: str) -> TileDataset:
    if not path:
        raise ConfigError("train.dataset_path is not set; write for example train.dataset_path=Folder:root=TILES")
    return make_dataset(path)


def device_type(name: str) -> str:
    """Return `cuda` or `cpu` for `train.device`.

    Raises:
        ConfigError: `cuda` where there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device = cuda: this machine has no usable CUDA device; use auto or cpu")
    return name


def _agreed_reason(stop: StopRequest) -> StopReason:
    """Return the weightiest reason to stop that any of the processes has."""
    return StopReason(int(all_reduce_max(torch.tensor(stop.code()))))


def _autocast_dtype(name: str, device: torch.device) -> torch.dtype | None:
    if name == "auto":
        name = "bf16" if device.type == "cuda" else "fp32"
    return torch.bfloat16 if name == "bf16" else None


def _load_pretrained(arch: SSLMetaArch, config: SSLConfig) -> None:
    """Start student and teacher from the weights that the configuration names, if any."""
    source = config.student.pretrained_weights or config.MODEL.WEIGHTS
    if not source:
        return
    state = load_backbone(source).model.state_dict()
    backbone = arch.student_backbone
    if differences := state_differences(shapes_of(backbone.state_dict()), shapes_of(state)):
        raise CheckpointError(f"{source} does not fit {backbone.spec.name}: {differences}")
    backbone.load_state_dict(state)
    arch.teacher_backbone.load_state_dict(state)


def _finite_numbers(tensors: dict[str, Tensor], step: int) -> dict[str, float]:
    """Bring scalars' means over processes to the host; raise DivergenceError naming those NaN or infinite."""
    means = all_reduce_sum(torch.stack([tensor.double() for tensor in tensors.values()])) / world_size()
    numbers = dict(zip(tensors, means.tolist(), strict=True))
    broken = ", ".join(f"{name} = {value}" for name, value in numbers.items() if not math.isfinite(value))
    if broken:
        raise DivergenceError(
            f"step {step}: {broken}; the newest checkpoint is from before this step. Lower optim.base_lr or "
            "optim.clip_grad and start a new run"
        )
    return numbers


def _schedule_values(values: StepValues) -> dict[str, float]:
    """Name the schedules' values as DINOv2's logs do."""
    return {
        "lr": values.lr,
        "last_layer_lr": values.last_layer_lr,
        "wd": values.weight_decay,
        "mom": values.momentum,
        "teacher_temp": values.teacher_temp,
    }
