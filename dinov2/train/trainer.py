"""A training run: everything it needs, from its configuration, and the loop over steps."""

import logging
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from dinov2.data.collate import MultiCropBatch
from dinov2.data.datasets import TileDataset
from dinov2.data.errors import DatasetError
from dinov2.data.loaders import MultiCropLoader, make_loader
from dinov2.distributed.checkpoint import Checkpointer
from dinov2.distributed.env import all_reduce_max, gather_objects, rank, world_size
from dinov2.distributed.parallelize import node_sizes, parallelize, resolve_strategy
from dinov2.distributed.training_state import TrainingState
from dinov2.logging.run_info import write_run_info
from dinov2.logging.sinks import MetricsLog
from dinov2.models.weights import TEACHER_FILE, load_backbone
from dinov2.ops.dispatch import force_backends
from dinov2.train.bad_tile_log import BadTileLog
from dinov2.train.batch_plan import BatchPlan
from dinov2.train.capture import capture_step, step_file
from dinov2.train.divergence import SkipBudget, describe, first_bad_rank
from dinov2.train.feed import BatchFeed
from dinov2.train.interrupt import StopReason, StopRequest
from dinov2.train.open_data import open_together
from dinov2.train.optim import build_optimizer
from dinov2.train.precision import Precision
from dinov2.train.requeue import job_deadline, requeue_if_slurm
from dinov2.train.run_folder import check_run_folder, check_same_data, keep_global_batch, write_config, write_dataset
from dinov2.train.run_lock import run_lock
from dinov2.train.schedules import Schedules, StepValues
from dinov2.train.ssl_meta_arch import SSLMetaArch
from dinov2.train.step import StepReport, TrainStep
from dinov2.train.step_clock import StepClock
from dinov2.utils.devices import device_type
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
        train = config.train
        if train.num_threads:
            torch.set_num_threads(train.num_threads)
        force_backends(asdict(config.kernels))
        keep_global_batch(folder, train)
        self.plan = BatchPlan.from_config(train, config.optim, world_size())
        train.global_batch_size = self.plan.global_batch
        self.dataset = _open_dataset(train.dataset_path, config.data.max_bad_fraction)
        check_run_folder(folder, config, force)
        check_same_data(folder, self.dataset, force)
        self.checkpointer = Checkpointer(
            folder,
            train.keep_last_checkpoints,
            train.saveckp_freq * train.OFFICIAL_EPOCH_LENGTH,
            train.async_checkpoints,
            config.parallel.timeout_minutes,
        )
        torch.manual_seed(train.seed)
        self.arch = self._make_arch()
        if not self.checkpointer.iterations():
            _load_pretrained(self.arch, config)
        self.arch.to(self.device).train()
        self.precision = Precision.from_name(config.compute_precision.dtype, self.device)
        self.strategy = resolve_strategy(config.parallel.strategy, world_size(), node_sizes(local_size))
        objective = parallelize(self.arch, config.parallel, self.device, self.precision.lowered, local_size)
        if rank():
            torch.manual_seed(train.seed + rank())  # processes drop other paths
        self.schedules = Schedules.from_config(config, self.plan.global_batch)
        optimizer, scaler = build_optimizer(self.arch.student, config.optim), self.precision.scaler()
        self.state = TrainingState(self.arch, optimizer, scaler)
        self.step = TrainStep(
            self.arch,
            objective,
            optimizer,
            self.precision,
            scaler,
            self.plan.accumulate,
            config.optim.clip_grad,
            self.device,
        )
        self.budget = SkipBudget(train.max_skipped_steps)

    def _make_arch(self) -> SSLMetaArch:
        return SSLMetaArch(self.config)

    def run(self, stop: StopRequest | None = None) -> int:
        """Train from the newest checkpoint on; return 0 when all steps are done, 128 + signal when stopped by one.

        Args:
            stop: the request to watch, entered; None: one of this run's own.

        Raises:
            DivergenceError: losses or gradients were not finite in too many steps.
            UserError: too many tiles are damaged or the data set fails (the state is saved first), no checkpoint can be
                read, or the last one could not be written.
        """
        with nullcontext(stop) if stop else StopRequest() as request, run_lock(self.folder):
            return self._run(request)

    def _run(self, stop: StopRequest) -> int:
        deadline = job_deadline(os.environ, self.config.train.stop_before_minutes)
        step = start = self.checkpointer.restore(self.state)
        end = min(self.schedules.total_steps, self.config.train.max_steps or self.schedules.total_steps)
        if rank() == 0:
            write_config(self.folder, self.config)
            write_dataset(self.folder, self.dataset)
        self._announce(start, end)
        stop.stop_at(deadline)
        self.step.stop_code = stop.code
        stopped = StopReason(int(all_reduce_max(torch.tensor(stop.code()))))  # it may have come during the set-up
        feed, clock = BatchFeed(iter(self._batches(start))), StepClock(self.plan.global_batch)
        sinks = MetricsLog(self.folder, start, end) if rank() == 0 else nullcontext()
        bad_tiles = BadTileLog(self.folder) if rank() == 0 else None
        with logging_redirect_tqdm(), sinks as metrics:
            while step < end and not stopped:
                values = self.schedules.at(step)
                report = self.step(feed, values)
                if report.failed_ranks:
                    self._save_finally(step)
                    raise feed.failure or DatasetError(
                        f"rank {report.failed_ranks[0]} has no more usable data: its log says why"
                    )
                if metrics and (report.bad or step % self.config.train.log_period_iterations == 0):
                    metrics.log(step, report.numbers | values.named() | clock.speed())
                if report.numbers["bad_tiles"]:
                    everywhere = chain.from_iterable(gather_objects(feed.bad))
                    if bad_tiles:
                        bad_tiles.add(step, everywhere)
                if report.bad:
                    self._skip(step, report, values)
                clock.start()
                if rank() == 0 and step == start:
                    self._write_run_info()
                step += 1
                stopped = StopReason(report.stop_code)
                if metrics:
                    metrics.advance()
                if not stopped and step < end:
                    self._save_when_due(step)
            del feed  # ends the loader's workers
            self._save_finally(step)  # still deaf to further signals
        if step < end:
            if stopped == StopReason.DEADLINE and step == start:  # it would come back from the queue again and again
                raise ConfigError(
                    f"train.stop_before_minutes = {self.config.train.stop_before_minutes:g}: that moment came before a "
                    "step could be taken; lower it, or ask for more time"
                )
            logger.warning("stopped at step %d of %d; run the same command again to go on", step, end)
            requeue_if_slurm(stopped, rank(), os.environ)
            return stopped.exit_code
        logger.info("finished %d steps; the teacher is in %s", step, self.folder / TEACHER_FILE)
        return 0

    def _skip(self, step: int, report: StepReport, values: StepValues) -> None:
        """Say that a step was skipped, or capture it and raise DivergenceError where that is one too many."""
        what = f"step {step}: {describe(report, world_size())}"
        logger.warning("%s; the step is skipped (train.max_skipped_steps = %d)", what, self.budget.allowed)
        if self.budget.spend(step):
            return
        self.checkpointer.wait()
        folder = self.folder / "diverged" / str(step)
        batches = islice(self._batches(step), self.plan.accumulate)
        problem = capture_step(folder, step, batches, values, report.numbers, self.state, self.config)
        path = step_file(folder, first_bad_rank(report))
        kept = f"is kept: python -m dinov2.train --replay {path} tells where it goes wrong"
        if problem:
            kept = f"could not be kept ({problem})"
        raise DivergenceError(
            f"{what}; more than train.max_skipped_steps = {self.budget.allowed} of the last steps were like that. The "
            f"step {kept}. The newest checkpoint is from before; lower optim.base_lr or optim.clip_grad, or try "
            "compute_precision.dtype=fp32"
        )

    def _batches(self, start: int) -> Iterator[MultiCropBatch]:
        return iter(self._loader(start))

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
            augment=config.data.augment,
            device=self.device,
        )

    def _save_when_due(self, step: int) -> None:
        period = self.config.train.checkpoint_period_iterations
        if step % period == 0 or step % self.checkpointer.keep_every == 0:
            self.checkpointer.save(self.state, self.arch.teacher_backbone, step, self.config)
        elif step % self.config.evaluation.eval_period_iterations == 0:
            self.checkpointer.export(self.arch.teacher_backbone, step, self.config)

    def _save_finally(self, step: int) -> None:
        """Save, and see that it is on disk.

        Raises:
            CheckpointError: it is not.
        """
        self.checkpointer.save(self.state, self.arch.teacher_backbone, step, self.config)
        if problem := self.checkpointer.wait():
            newest = (self.checkpointer.iterations() or [0])[-1]
            raise CheckpointError(
                f"the state after step {step} could not be written to {self.checkpointer.folder}: {problem}. Make room "
                f"and run the same command again: it goes on from step {newest}"
            )

    def _announce(self, start: int, end: int) -> None:
        spec = self.arch.student_backbone.spec
        count = sum(p.numel() for p in self.arch.student_backbone.parameters())
        logger.info(
            "%s: %d blocks of width %d, %s parameters; %d tiles; batch %d (%d x %d x %d); %s on %s",
            *(spec.name, spec.depth, spec.embed_dim, f"{count:,}", len(self.dataset), self.plan.global_batch),
            *(world_size(), self.plan.accumulate, self.plan.micro_batch, self.precision, self.device),
        )
        if start:
            logger.info("resuming at step %d of %d", start, end)

    def _write_run_info(self) -> None:
        write_run_info(
            self.folder / "run.json",
            self.device,
            precision=str(self.precision),
            tiles=len(self.dataset),
            global_batch_size=self.plan.global_batch,
            parameters=sum(p.numel() for p in self.arch.student_backbone.parameters()),
            processes=world_size(),
            strategy=self.strategy,
        )


def _open_dataset(path: str, max_bad_fraction: float) -> TileDataset:
    if not path:
        raise ConfigError("train.dataset_path is not set; write for example train.dataset_path=Folder:root=TILES")
    return open_together(path, max_bad_fraction)


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
