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
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dinov2.utils.errors import UserError

FIRST_PORT, PORTS = 20000, 12000  # below the ports from which Linux serves outgoing connections (32768 on)


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
            address (the step's first node) and the port (20000 to 31999, from the numbers of job and step).

    Raises:
        LaunchError: a variable is missing, is no number, or contradicts another; names the variable and the fix.
    """
    if "RANK" in environ or "LOCAL_RANK" in environ:
        launch = _from_torchrun(environ)
    elif _number(environ, "SLURM_STEP_NUM_TASKS", default=1) > 1:
        launch = _from_slurm(environ)
    else:
        return SINGLE
    _check(launch, environ)
    return launch


def derived_port(job: int, step: int = 0) -> int:
    """Return the port at which a job's processes meet, the same on all of them: 20000 to 31999.

    Jobs that share a node have neighbouring numbers, and neighbouring steps run side by side: both get ports of their
    own.
    """
    return FIRST_PORT + (job + 1000 * step) % PORTS


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list: `gpu[07-09,12],cpu1` gives `gpu07`.

    Raises:
        LaunchError: the list is empty.
    """
    host = re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", re.sub(r",(?![^\[]*\]).*", "", nodes))
    if not host:
        raise LaunchError(f"SLURM_STEP_NODELIST = {nodes!r}: names no host; start the program with srun")
    return host


def tasks_on_node(counts: str, node: int) -> int:
    """Return how many tasks run on the node with number `node`; `counts` is Slurm's `2(x3),1`.

    Raises:
        LaunchError: there is no such node, or `counts` cannot be read.
    """
    tasks: list[int] = []
    for part in counts.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise LaunchError(f"SLURM_STEP_TASKS_PER_NODE = {counts!r}: expected counts such as 2(x3),1; use srun")
        tasks += [int(match[1])] * int(match[2] or 1)
    if node >= len(tasks):
        raise LaunchError(
            f"SLURM_NODEID = {node}: SLURM_STEP_TASKS_PER_NODE = {counts!r} has {len(tasks)} nodes; use srun"
        )
    return tasks[node]


def _from_torchrun(environ: Mapping[str, str]) -> Launch:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    return Launch(
        *(_number(environ, name) for name in names), "torchrun", _text(environ, "MASTER_ADDR"), _port(environ)
    )


def _from_slurm(environ: Mapping[str, str]) -> Launch:
    port = derived_port(_number(environ, "SLURM_JOB_ID"), _number(environ, "SLURM_STEP_ID", default=0))
    nodes = environ.get("SLURM_STEP_NODELIST") or _text(environ, "SLURM_JOB_NODELIST")
    return Launch(
        _number(environ, "SLURM_PROCID"),
        _number(environ, "SLURM_LOCALID"),
        _number(environ, "SLURM_STEP_NUM_TASKS"),
        tasks_on_node(_text(environ, "SLURM_STEP_TASKS_PER_NODE"), _number(environ, "SLURM_NODEID")),
        "slurm",
        environ.get("MASTER_ADDR") or reachable_name(first_host(nodes)),
        _port(environ) if environ.get("MASTER_PORT") else port,
    )


def reachable_name(node: str) -> str:
    """Return `node` if that name resolves, else the address under which Slurm reaches the node, else `node`.

    A node's name in Slurm need not be a host's name: clusters in a cloud, and several nodes on one host.
    """
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        command = ["scontrol", "show", "node", node, "--oneliner"]
        try:
            shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return node
        match = re.search(r"\bNodeAddr=(\S+)", shown)
        return match[1] if match else node
    return node


def _check(launch: Launch, environ: Mapping[str, str]) -> None:
    slurm = launch.source == "slurm"
    rank, size, local, local_size = (
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
        if slurm
        else ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    fix = "start all processes with one srun" if slurm else "start all processes with torchrun, or unset these variables"
    for small, value, large, bound in (
        (rank, launch.rank, size, launch.world_size),
        (local, launch.local_rank, local_size, launch.local_world_size),
    ):
        if value >= bound:
            raise LaunchError(f"{small} = {value}: must be smaller than {large} = {environ[large]}; {fix}")
    if launch.local_world_size > launch.world_size:
        raise LaunchError(
            f"{local_size} = {environ[local_size]}: must not exceed {size} = {launch.world_size}; {fix}"
        )


def _text(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name)
    if not value:
        raise LaunchError(
            f"{name} is not set, while other variables of a launcher are ({_present(environ)}); start with torchrun or "
            "srun, or unset these for one process"
        )
    return value


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    if default is not None and not environ.get(name):
        return default
    value = _text(environ, name)
    if not re.fullmatch(r"\d+", value):
        raise LaunchError(f"{name} = {value!r}: expected a whole number from 0; unset it or start with torchrun or srun")
    return int(value)


def _port(environ: Mapping[str, str]) -> int:
    port = _number(environ, "MASTER_PORT")
    if not 0 < port < 2**16:
        raise LaunchError(f"MASTER_PORT = {port}: expected 1 to 65535; set a free port, or leave it to the launcher")
    return port


def _present(environ: Mapping[str, str]) -> str:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    return ", ".join(f"{name}={environ[name]}" for name in names if name in environ)
