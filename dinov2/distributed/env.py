"""Where this process stands among the others, and collectives that are the identity when it is alone."""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

T = TypeVar("T")


def is_distributed() -> bool:
    """Tell whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if is_distributed() else 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum `tensor` over all processes, in place, and return it."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


def all_reduce_max(tensor: Tensor) -> Tensor:
    """Take the maximum of `tensor` over all processes, in place, and return it."""
    if is_distributed():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def barrier() -> None:
    """Wait for all processes."""
    if is_distributed():
        dist.barrier()


def gather_vectors(vector: Tensor) -> Tensor:
    """Return the vectors (P,) of all processes (W, P), in order of rank; without gradients."""
    if not is_distributed():
        return vector[None]
    gathered = vector.new_empty(world_size(), *vector.shape)
    dist.all_gather(list(gathered), vector)
    return gathered


def gather_objects(value: T) -> list[T]:
    """Return the values of all processes, which are pickled, in order of rank."""
    if not is_distributed():
        return [value]
    values = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather_rows(tensor: Tensor) -> Tensor:
    """Return the rows of all processes' tensors (B, ...), in order of rank; gradients flow back to their owners."""
    return torch.cat(all_gather(tensor)) if is_distributed() else tensor
