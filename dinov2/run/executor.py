"""Handing tasks to submitit: one task a GPU, on Slurm, on this machine, or in this process."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import submitit

from dinov2.utils.errors import UserError

SIGNAL_SECONDS = 120


@dataclass(frozen=True)
class Resources:
    """What a job asks for. `None` leaves the choice to the cluster.

    `gpus` and `tasks` are counts a node; `minutes` is the time limit, `memory` and the strings are in Slurm's terms.
    """

    nodes: int = 1
    gpus: int = 8
    tasks_per_node: int | None = None  # None: one a GPU, at least one
    minutes: int = 2880
    cpus_per_task: int | None = None
    memory: str | None = None
    partition: str | None = None
    qos: str | None = None
    account: str | None = None
    constraint: str | None = None
    comment: str | None = None
    exclude: str | None = None

    @property
    def tasks(self) -> int:
        """Tasks on each node."""
        return self.tasks_per_node or max(self.gpus, 1)

    @property
    def processes(self) -> int:
        """Tasks on all nodes."""
        return self.nodes * self.tasks


def start_jobs(
    tasks: Sequence[Callable[[], Any]],
    cluster: Literal["slurm", "local", "debug"],
    folder: Path,
    resources: Resources,
    name: str = "pretrain",
) -> list["submitit.Job[Any]"]:
    """Submit each task as a job that runs it in all its processes; several are one array of jobs under Slurm.

    Args:
        tasks: callables that submitit can store.
        cluster: "slurm"; "local", processes on this machine; "debug", this very process, at the first question for the
            job's result.
        folder: where each job gets a folder of its own name, with its logs and result; all nodes must see it.
        resources: what each job asks for; locally only tasks, GPUs and minutes count.
        name: of the jobs.

    Raises:
        UserError: there is no Slurm here, or it refuses the job (with its words).
    """
    if cluster == "local" and resources.nodes > 1:
        raise UserError(f"--nodes {resources.nodes}: this machine is one node; use --nodes 1, or --cluster slurm")
    try:
        executor = submitit.AutoExecutor(folder / "%j", cluster=cluster)
        executor.update_parameters(**_parameters(resources, name))
        with deaf_to_ctrl_c():
            if cluster == "slurm":
                return executor.submit_array(tasks)
            return [executor.submit(task) for task in tasks]
    # submitit's own errors are RuntimeErrors, and carry what sbatch said.
    except RuntimeError as error:
        fix = "; --cluster local runs on this machine" if "srun" in str(error) else ""
        raise UserError(f"the job could not be submitted: {error}{fix}") from None


def _parameters(resources: Resources, name: str) -> dict[str, Any]:
    srun = ["--kill-on-bad-exit=1"]
    if resources.cpus_per_task:
        # Since Slurm 22.05, srun does not take it over from sbatch.
        srun.append(f"--cpus-per-task={resources.cpus_per_task}")
    return {
        "name": name,
        "nodes": resources.nodes,
        "tasks_per_node": resources.tasks,
        "gpus_per_node": resources.gpus or None,
        "cpus_per_task": resources.cpus_per_task,
        "timeout_min": resources.minutes,
        "slurm_mem": resources.memory,
        "slurm_partition": resources.partition,
        "slurm_qos": resources.qos,
        "slurm_account": resources.account,
        "slurm_constraint": resources.constraint,
        "slurm_comment": resources.comment,
        "slurm_exclude": resources.exclude,
        "slurm_signal_delay_s": SIGNAL_SECONDS,
        "slurm_srun_args": srun,
        "slurm_additional_parameters": {"requeue": True},
    }


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """A block in which this process, and every process it starts, ignores Ctrl-C until it installs a handler.

    submitit's local controller would answer Ctrl-C by killing the tasks within a second, before they have saved.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
