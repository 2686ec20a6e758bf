"""The training loader: an infinite stream of batches that depends on the seed and the step, and on nothing else."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.utils.data import DataLoader, get_worker_info

from dinov2.data.bad_tiles import BadTileMonitor
from dinov2.data.collate import MultiCropBatch, MultiCropCollator, TileBatch, UnreadableBatch
from dinov2.data.datasets import TileDataset
from dinov2.data.datasets.damage import refuse_damage
from dinov2.data.device_augmentation import DeviceAugmentation
from dinov2.data.errors import LoaderError, TooManyBadTilesError
from dinov2.data.samplers import RankBatchSampler
from dinov2.data.samples import Sample, SampleStream
from dinov2.data.workers import deaths_polled, init_worker, lost_worker, single_thread
from dinov2.utils.schema import CropsSection, IbotSection

Augment = Literal["auto", "device", "worker"]
CPU = torch.device("cpu")


@dataclass
class UnsharedBatch:
    """Stands for a batch that a worker could not put into shared memory."""

    reason: str


Loaded = MultiCropBatch | TileBatch | UnreadableBatch | UnsharedBatch


class _SharedCollator:
    """A collate function that moves a worker's batches to shared memory, or says why it cannot."""

    def __init__(self, collate: MultiCropCollator) -> None:
        self._collate = collate

    def __call__(self, samples: Sequence[Sample]) -> Loaded:
        try:
            batch = self._collate(samples)
            if get_worker_info() is None or isinstance(batch, UnreadableBatch):
                return batch
            return batch.share_memory()
        except LoaderError as error:
            return UnsharedBatch(str(error))


class MultiCropLoader:
    """Iterable of `MultiCropBatch`, without end; each iteration begins at `start_step`. Use `make_loader`.

    Attributes:
        monitor: the damaged tiles met so far.
    """

    def __init__(
        self,
        batches: DataLoader[Loaded],
        monitor: BadTileMonitor,
        augmentation: DeviceAugmentation,
    ) -> None:
        self.monitor = monitor
        self._batches = batches
        self._augmentation = augmentation

    def __iter__(self) -> Iterator[MultiCropBatch]:
        """Yield batches; those of `augment = device` are on the device, the others in the CPU's memory.

        Raises:
            TooManyBadTilesError: see `BadTileMonitor`; also where a sample and all its replacements are damaged.
            LoaderError: a worker has died, or has no shared memory for its batches.
        """
        for batch in self._loaded():
            if isinstance(batch, UnsharedBatch):
                raise self._lost(batch.reason)
            if isinstance(batch, UnreadableBatch):
                self.monitor.update(batch.bad, batch.n_samples)
                raise TooManyBadTilesError(
                    f"no readable tile found: {len(self.monitor.paths)} different tiles failed, and with them every "
                    f"replacement drawn; the last: {': '.join(batch.bad[-1])}"
                )
            self.monitor.update(batch.bad, len(batch.positions))
            yield batch if isinstance(batch, MultiCropBatch) else batch.render(self._augmentation)

    def _loaded(self) -> Iterator[Loaded]:
        with deaths_polled() as poll:
            batches = iter(self._batches)
            poll()
            while True:
                try:
                    with single_thread():  # without workers, the work is done here
                        batch = next(batches)
                except (RuntimeError, OSError, EOFError) as error:
                    if self._batches.num_workers and (reason := lost_worker(error)):
                        raise self._lost(reason) from error
                    raise
                yield batch

    def _lost(self, reason: str) -> LoaderError:
        return LoaderError(
            f"a loader process is lost: {reason.rstrip('. ')}. Most likely memory has run out, or shared memory in "
            f"/dev/shm: lower train.num_workers (now {self._batches.num_workers}; 0 loads without processes), or "
            "give the job more memory, or a container a larger /dev/shm (docker run --shm-size)"
        )


def make_loader(
    dataset: TileDataset,
    crops: CropsSection,
    ibot: IbotSection,
    *,
    patch_size: int,
    global_batch_size: int,
    seed: int,
    num_workers: int = 0,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    accumulate: int = 1,
    max_bad_fraction: float = 0.01,
    pin_memory: bool = False,
    augment: Augment = "auto",
    device: torch.device = CPU,
) -> MultiCropLoader:
    """Loader of one process.

    Args:
        dataset: the tiles.
        crops: multi-crop and augmentation.
        ibot: of which only the mask settings matter here.
        patch_size: px; `crops.global_crops_size` must be a multiple.
        global_batch_size: samples in a step over all processes, a multiple of `world_size`.
        seed: `train.seed`; order, crops and masks follow from it.
        num_workers: loader processes; 0 loads in this process. Batches do not depend on it.
        start_step: first step.
        rank: this process.
        world_size: number of processes.
        accumulate: micro-batches in a process's part of a step; each is one item of the loader.
        max_bad_fraction: `data.max_bad_fraction`, see `BadTileMonitor` and `refuse_damage`.
        pin_memory: copy batches to page-locked memory, for CUDA.
        augment: `data.augment`, where crops are made.
        device: the training device.

    Raises:
        ValueError: sizes that do not divide, or a rank or step out of range.
        TooManyBadTilesError: see `refuse_damage`.
    """
    refuse_damage(dataset, max_bad_fraction)
    side, remainder = divmod(crops.global_crops_size, patch_size)
    if remainder:
        raise ValueError(f"crops.global_crops_size {crops.global_crops_size} is not a multiple of patch {patch_size}")
    collate = MultiCropCollator(
        crops,
        seed,
        global_batch_size,
        (side, side),
        ibot.mask_sample_probability,
        ibot.mask_ratio_min_max,
        on_device=augments_on_device(augment, device),
    )
    # The stream is a map from positions without an end, which the types of DataLoader do not foresee.
    batches: DataLoader[Loaded] = DataLoader(
        SampleStream(dataset, crops, seed),  # type: ignore[arg-type]
        batch_sampler=RankBatchSampler(global_batch_size, rank, world_size, start_step, accumulate),
        num_workers=num_workers,
        collate_fn=_SharedCollator(collate),
        worker_init_fn=init_worker,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        # Workers' base seed comes from here: the global RNG must not depend on how the data are loaded.
        generator=torch.Generator(),
    )
    monitor = BadTileMonitor(max_bad_fraction, len(dataset))
    return MultiCropLoader(batches, monitor, DeviceAugmentation(crops, device))


def augments_on_device(augment: Augment, device: torch.device) -> bool:
    """Whether crops are made on the device: `auto` says yes where it is no CPU, whose quickest form is the worker's."""
    return device.type != "cpu" if augment == "auto" else augment == "device"
