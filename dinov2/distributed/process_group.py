"""The process group of a run: made from a `Launch`, ended without waiting for processes that will never come.

The ranks meet in a store first, and learn there what device each of them has found: only then do they make a group.
A rank that fails later writes who it is, where and why into the store, before it goes. The others notice by a broken or
timed-out collective, which says nothing of the cause, and can then name the first to fail.
"""

import faulthandler
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.elastic.utils.store import synchronize
from torch.distributed.rendezvous import rendezvous

from dinov2.distributed.launch import Launch, LaunchError
from dinov2.utils.devices import device_type
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")
FAILURE = "first_failure"
EXIT_SECONDS = 60.0


class DeviceError(LaunchError):
    """Some process has not the device it should have; all processes raise the same."""


@contextmanager
def process_group(launch: Launch, device_name: str, timeout_minutes: float = 30.0) -> Iterator[torch.device]:
    """Provide this process's device with, when there are several processes, a process group around the block.

    The block ends on all ranks together (a barrier). When it raises, nothing is awaited: the failure is logged with its
    rank, the other ranks' failures name the first one, and the process ends within a minute even if a library still
    waits for the others. Under srun give `--kill-on-bad-exit=1`, so that all tasks end with the first; torchrun does
    so by itself.

    Args:
        launch: what `find_launch` returned.
        device_name: "cuda" (NCCL, with gloo for tensors on the CPU), "cpu" (gloo) or "auto", CUDA where there is any.
        timeout_minutes: how long the processes wait for each other at the start and in any collective.

    Yields:
        the CPU, or this process's CUDA device, which is also made the current one.

    Raises:
        UserError: this one process has no such device.
        DeviceError: there are more processes than CUDA devices on a node, none where there should be, or some processes
            found CUDA and others did not.
    """
    if launch.world_size == 1:
        yield _device(launch, device_name)
        return
    timeout = timedelta(minutes=timeout_minutes)
    store = _meet(launch, timeout)
    device = _device_like_all(launch, store, device_name, timeout)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore("group", store),
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )
    try:
        yield device
        dist.barrier()  # rank 0 holds the store, and may not leave first
    except BaseException as error:
        _report(launch, store, error)
        # Libraries may wait for the lost ranks while the interpreter shuts down.
        faulthandler.dump_traceback_later(EXIT_SECONDS, exit=True, file=2)
        raise
    dist.destroy_process_group()


def _device_like_all(launch: Launch, store: Store, name: str, timeout: timedelta) -> torch.device:
    """Return this process's device, after all processes have told each other theirs.

    Raises:
        DeviceError: some process has none, or one of another type; on all processes.
    """
    device, problem = torch.device("cpu"), ""
    try:
        device = _device(launch, name)
    except UserError as error:
        problem = str(error)
    told = json.dumps([str(launch), device.type, problem]).encode()
    answers = synchronize(store, told, launch.rank, launch.world_size, "device/", timeout.total_seconds())
    found = [json.loads(answer) for answer in answers]
    for where, _, problem in found:
        if problem:
            raise DeviceError(f"{where}: {problem}")
    (first, first_type, _), *others = found
    for where, kind, _ in others:
        if kind != first_type:
            raise DeviceError(
                f"train.device = {name}: {first} found {first_type}, but {where} found {kind}; leave out the node "
                "whose CUDA driver does not answer, or give train.device=cpu for all"
            )
    return device


def _device(launch: Launch, name: str) -> torch.device:
    if device_type(name) != "cuda":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    # Slurm may show each task only the device that is bound to it.
    index = 0 if count == 1 and launch.source == "slurm" else launch.local_rank
    if index >= count:
        raise LaunchError(
            f"{launch.local_world_size} processes on this node, but {count} CUDA devices "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}): start one process a device"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def _meet(launch: Launch, timeout: timedelta) -> Store:
    """Return the store that all ranks share; torchrun has one of its own, which only its environment leads to."""
    host = f"[{launch.address}]" if ":" in launch.address else launch.address
    url = "env://" if launch.source == "torchrun" else f"tcp://{host}:{launch.port}"
    store, _, _ = next(rendezvous(url, launch.rank, launch.world_size, timeout=timeout))
    store.set_timeout(timeout)
    return store


def _report(launch: Launch, store: Store, error: BaseException) -> None:
    """Log a failure with its rank, and the first one if that was another's."""
    if isinstance(error, SystemExit) and not error.code:
        return
    what = f"{type(error).__name__}: {error}"
    try:
        first = store.compare_set(FAILURE, "", f"{launch}: {what}").decode()
    except RuntimeError:  # the store went with rank 0
        first = "" if launch.rank == 0 else "unknown, rank 0 is gone; see its log"
    if first.endswith(f": {what}") and not first.startswith(f"{launch}:"):
        return  # all of them object to the same thing, and one has said so
    logger.error("%s failed: %s", launch, what)  # the traceback follows, from Python
    if first and not first.startswith(f"{launch}:"):
        logger.error("%s failed because of another; the first to fail was %s", launch, first.splitlines()[0])
