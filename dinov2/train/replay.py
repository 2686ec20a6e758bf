"""`python -m dinov2.train --replay diverged/STEP/rankN.pt`: compute a captured step again and say where it goes wrong.

One process stands for the one that wrote the file. What looks across processes (Sinkhorn-Knopp, centring, KoLeo) sees
this process's part alone, so that with several the losses differ a little from those that were logged.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dinov2.distributed.training_state import TrainingState
from dinov2.ops.dispatch import force_backends
from dinov2.train.capture import CapturedStep, load_captured_state, read_step
from dinov2.train.optim import build_optimizer
from dinov2.train.precision import Precision
from dinov2.train.ssl_meta_arch import SSLMetaArch
from dinov2.utils.config import override
from dinov2.utils.devices import device_type

NAMED = 5


def replay(path: Path, overrides: Sequence[str] = ()) -> int:
    """Compute a captured step again, with `section.key=value` overrides, and print what is not finite in it.

    Returns the exit code: 1 if anything is NaN or infinite, 0 if all is finite.

    Raises:
        UserError: the file or an override cannot be used.
    """
    captured = read_step(path)
    config = override(captured.config, overrides)
    force_backends(asdict(config.kernels))
    device = torch.device(device_type(config.train.device))
    precision = Precision.from_name(config.compute_precision.dtype, device)
    arch = SSLMetaArch(config).to(device).train()
    scaler = precision.scaler()
    load_captured_state(captured, TrainingState(arch, build_optimizer(arch.student, config.optim), scaler))
    print(
        f"step {captured.step} of rank {captured.rank} of {captured.world_size}, in {precision} on {device.type}; "
        f"{len(captured.micro_batches)} micro-batches"
    )
    found = _not_finite("weight", arch.named_parameters())
    for number, batch in enumerate(captured.micro_batches):
        with first_bad_output(arch) as where, precision.autocast():
            parts = arch(batch.to(device), captured.values.teacher_temp)
        scaler.scale(parts["total_loss"] / len(captured.micro_batches)).backward()
        print(f"micro-batch {number}: " + ", ".join(f"{name} {part.item():.6g}" for name, part in parts.items()))
        bad_crops = [name for name, value in vars(batch).items() if isinstance(value, Tensor) and not _finite(value)]
        found += [f"crops: {name} of {', '.join(batch.paths[:NAMED])} ..." for name in bad_crops]
        found += [f"first module with a non-finite output: {where[0]}"] if where else []
        found += [f"loss {name} = {part.item()}" for name, part in parts.items() if not math.isfinite(part.item())]
    found += _not_finite("gradient", ((name, p.grad) for name, p in arch.named_parameters() if p.grad is not None))
    for line in found:
        print(f"  not finite: {line}")
    if not found:
        print(_nothing_found(captured))
    return 1 if found else 0


@contextmanager
def first_bad_output(model: nn.Module) -> Iterator[list[str]]:
    """Within the block, note in the list the first submodule whose inputs are finite and whose output is not."""
    names: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not names and not _finite(output):
                clean = "from finite inputs" if _finite(inputs) else "from inputs that were not finite"
                names.append(f"{name} ({type(module).__name__}), {clean}")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def _finite(values: Any) -> bool:
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _not_finite(kind: str, tensors: Any) -> list[str]:
    names = [name for name, tensor in tensors if not _finite(tensor)]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [f"{kind} of {', '.join(names[:NAMED])}{more}"] if names else []


def _nothing_found(captured: CapturedStep) -> str:
    logged = [name for name, value in captured.numbers.items() if not math.isfinite(value)]
    return (
        f"all losses and gradients are finite here, while {', '.join(logged) or 'nothing'} was not in the run: look at "
        "the precision (compute_precision.dtype), the kernels (run.json), another rank's file, or the hardware"
    )
