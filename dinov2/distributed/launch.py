"""How this process was started: by torchrun, by Slurm's srun, or alone; its rank and where the processes meet.

Three launchers, one result (`find_launch`), from environment variables only:

    torchrun     RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT; they win over Slurm's,
                 since torchrun may itself run in a Slurm job.
    srun         the variables of a job step (SLURM_PROCID, SLURM_STEP_NUM_TASKS, ...). The shell of an sbatch job or of
                 salloc also carries SLURM_PROCID=0 and the job's SLURM_NTASKS, but belongs to no step with several
                 tasks: a program started there without srun is alone.
    none         one process.
"""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dinov2.distributed.slurm_nodes import first_host, reachable_name, tasks_on_node
from dinov2.utils.errors import UserError

FIRST_PORT, PORTS = 20000, 12000  # below the ports from which Linux serves outgoing connections (32768 on)
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")


class LaunchError(UserError):
    """The variables of a launcher are missing or contradict each other."""


@dataclass(frozen=True)
class Launch:
    """Where a process stands among the others, and the address and port at which rank 0 awaits them."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    source: Literal["single", "torchrun", "slurm"]
    address: str
    port: int

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world_size} on {socket.gethostname()}"


SINGLE = Launch(0, 0, 1, 1, "single", "127.0.0.1", 0)


def find_launch(environ: Mapping[str, str]) -> Launch:
    """Return this process's place from the environment that its launcher has set.

    Args:
        environ: environment variables, such as `os.environ`. Under Slurm, MASTER_ADDR and MASTER_PORT override the
            address (the step's first node) and the port (`derived_port`).

    Raises:
        LaunchError: a variable is missing, is no number, or contradicts another; names it, its value and the fix.
    """
    if "RANK" in environ or "LOCAL_RANK" in environ:
        launch = _from_torchrun(environ)
        names, fix = TORCHRUN, "start all processes with torchrun, or unset these variables for one process"
    elif _number(environ, "SLURM_STEP_NUM_TASKS", default=1) > 1:
        launch = _from_slurm(environ)
        names, fix = SLURM, "start all processes with one srun, and set no variables of Slurm by hand"
    else:
        return SINGLE
    for value, bound, name, limit in (
        (launch.rank, launch.world_size, names[0], names[1]),
        (launch.local_rank, launch.local_world_size, names[2], names[3]),
    ):
        if value >= bound:
            raise LaunchError(f"{name} = {value}: must be smaller than {limit} = {environ[limit]}; {fix}")
    if launch.local_world_size > launch.world_size:
        raise LaunchError(f"{names[3]} = {environ[names[3]]}: must not exceed {names[1]} = {launch.world_size}; {fix}")
    return launch


def derived_port(job: int, step: int = 0) -> int:
    """Return the port at which the processes of a job's step meet, the same on all of them: 20000 to 31999.

    Jobs that share a node have neighbouring numbers, and steps of a job may run side by side: all get different ports.
    """
    return FIRST_PORT + (job + 1000 * step) % PORTS


def _from_torchrun(environ: Mapping[str, str]) -> Launch:
    rank, world_size, local_rank, local_world_size = (_number(environ, name) for name in TORCHRUN)
    address = _text(environ, "MASTER_ADDR")
    return Launch(rank, local_rank, world_size, local_world_size, "torchrun", address, _port(environ))


def _from_slurm(environ: Mapping[str, str]) -> Launch:
    nodes = environ.get("SLURM_STEP_NODELIST") or _text(environ, "SLURM_JOB_NODELIST")
    counts, node = _text(environ, "SLURM_STEP_TASKS_PER_NODE"), _number(environ, "SLURM_NODEID")
    try:
        host, local_world_size = first_host(nodes), tasks_on_node(counts, node)
    except ValueError as error:
        raise LaunchError(f"{error}; start all processes with one srun") from None
    port = derived_port(_number(environ, "SLURM_JOB_ID"), _number(environ, "SLURM_STEP_ID", default=0))
    return Launch(
        rank=_number(environ, "SLURM_PROCID"),
        local_rank=_number(environ, "SLURM_LOCALID"),
        world_size=_number(environ, "SLURM_STEP_NUM_TASKS"),
        local_world_size=local_world_size,
        source="slurm",
        address=environ.get("MASTER_ADDR") or reachable_name(host),
        port=_port(environ) if environ.get("MASTER_PORT") else port,
    )


def _text(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name)
    if not value:
        others = ", ".join(f"{other}={environ[other]}" for other in (*TORCHRUN, *SLURM) if other in environ)
        raise LaunchError(
            f"{name} is not set, while {others} are: start with torchrun or srun, or unset these for one process"
        )
    return value


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    if default is not None and not environ.get(name):
        return default
    value = _text(environ, name)
    if not re.fullmatch(r"\d+", value):
        raise LaunchError(
            f"{name} = {value!r}: expected a whole number from 0; unset it, or start with torchrun or srun"
        )
    return int(value)


def _port(environ: Mapping[str, str]) -> int:
    port = _number(environ, "MASTER_PORT")
    if not 0 < port < 2**16:
        raise LaunchError(f"MASTER_PORT = {port}: expected 1 to 65535; set a free port, or leave it to the launcher")
    return port
