"""A step that went wrong, on disk: `diverged/<step>/`, from which it can be computed again.

    rank<r>.pt     the micro-batches of one process (crops, masks, paths), the schedules' values, the configuration
    state/         the training state before the step, in torch.distributed.checkpoint's layout

The files hold tensors and plain values only: the first is read with `weights_only=True`, the table of contents of the
state by `TensorReader`, so that a file from elsewhere executes nothing.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from dinov2.data.collate import MultiCropBatch
from dinov2.distributed.checkpoint_reader import read_state
from dinov2.distributed.env import barrier, rank, world_size
from dinov2.distributed.training_state import TrainingState, rng_state, set_rng_state
from dinov2.train.schedules import StepValues
from dinov2.utils.config import config_to_dict
from dinov2.utils.errors import CheckpointError
from dinov2.utils.files import replacing
from dinov2.utils.schema import SSLConfig

FORMAT = "dinov2-pathology step"


@dataclass(frozen=True)
class CapturedStep:
    """One process's part of a step."""

    step: int
    rank: int
    world_size: int
    values: StepValues
    config: dict[str, Any]
    micro_batches: list[MultiCropBatch]
    numbers: dict[str, float]  # as they were logged
    rng: dict[str, torch.Tensor]  # of this process, before the step
    state_folder: Path


def step_file(folder: Path, rank: int) -> Path:
    """Return the file of one process in the folder of a step."""
    return folder / f"rank{rank}.pt"


def capture_step(
    folder: Path,
    step: int,
    batches: Iterable[MultiCropBatch],
    values: StepValues,
    numbers: dict[str, float],
    state: TrainingState,
    config: SSLConfig,
) -> str:
    """Write a step to `folder`, on all processes together; return what went wrong with that on this one, or ''.

    Args:
        folder: `diverged/<step>` of the run.
        step: its number.
        batches: this process's micro-batches.
        values: of the schedules.
        numbers: what the step reported.
        state: as it was before the step, and is.
        config: of the run.
    """
    problem = ""
    try:
        content = {
            "format": FORMAT,
            "step": step,
            "rank": rank(),
            "world_size": world_size(),
            "values": asdict(values),
            "config": config_to_dict(config),
            "micro_batches": [vars(batch) for batch in batches],
            "numbers": numbers,
            "rng": rng_state(state.device),
        }
        with replacing(step_file(folder, rank())) as temporary:
            torch.save(content, temporary)
    except Exception as error:  # what is lost here must not hide what is being reported
        problem = f"{type(error).__name__}: {error}"
    barrier()
    try:
        save(state.tensors(step), checkpoint_id=folder / "state")
    except (Exception, CheckpointException) as error:  # on all processes
        problem = problem or f"{type(error).__name__}: {error}"
    return problem


def read_step(path: Path) -> CapturedStep:
    """Read a file that `capture_step` wrote.

    Raises:
        CheckpointError: it is something else, or cannot be read.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise KeyError("format")
    except FileNotFoundError:
        raise CheckpointError(f"--replay {path}: no such file; give diverged/STEP/rankN.pt of a run folder") from None
    except Exception as error:  # torch.load raises nearly anything on other files
        raise CheckpointError(
            f"--replay {path} is no captured step ({type(error).__name__}); give diverged/STEP/rankN.pt of a run folder"
        ) from error
    return CapturedStep(
        step=content["step"],
        rank=content["rank"],
        world_size=content["world_size"],
        values=StepValues(**content["values"]),
        config=content["config"],
        micro_batches=[MultiCropBatch(**batch) for batch in content["micro_batches"]],
        numbers=content["numbers"],
        rng=content["rng"],
        state_folder=path.parent / "state",
    )


def load_captured_state(captured: CapturedStep, state: TrainingState) -> None:
    """Put `state`, and this process's generators, where the captured step began.

    Raises:
        CheckpointError: the folder of its state is missing, damaged or of another architecture.
    """
    try:
        state.load(read_state(captured.state_folder, state))
    except CheckpointError:
        raise
    # Damage shows as many kinds of exception, of which the second is no Exception.
    except (Exception, CheckpointException) as error:
        raise CheckpointError(f"{captured.state_folder} cannot be read: {type(error).__name__}: {error}") from error
    set_rng_state(captured.rng)
