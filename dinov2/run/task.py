"""What submitit runs in every task of a job: the training program, with signals and ranks put right first.

submitit installs handlers of its own before it calls a task: the signal before the time limit makes rank 0 alone save
and queue the job again while the others go on, and SIGTERM is only logged. They are removed here, so that the training
program's own (`dinov2.train.interrupt`) are the only ones: all ranks save together, and rank 0 queues the job again.
"""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from dinov2.distributed.launch import derived_port
from dinov2.train.interrupt import SIGNALS, STOPPED_EXIT_CODES, StopReason, StopRequest

LOCAL_RESTART = 144  # the exit code at which submitit's local executor starts a job's tasks again


class TaskFailedError(RuntimeError):
    """The training program ended with an exit code that says it failed."""


@dataclass(frozen=True)
class PretrainTask:
    """Runs `python -m dinov2.train` with these arguments in each task; a callable that submitit can store."""

    arguments: tuple[str, ...]

    def __call__(self) -> int:
        """Train, and return 0 when the training is finished.

        Raises:
            TaskFailedError: the program failed; its messages are in the task's log.
            SystemExit: it was stopped with its state saved. submitit then stores no result, as the job is not done.
        """
        release_signals()
        os.environ.update(local_ranks(os.environ))
        with StopRequest() as stop:  # before the import, which takes seconds in which a signal would end the process
            from dinov2.train.train import main

            code = main(list(self.arguments), stop)
        return conclude(code, os.environ)


def release_signals() -> None:
    """Take out the signal handlers that submitit has installed in this process."""
    for number in (*SIGNALS, signal.SIGCONT):
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)


def local_ranks(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that torchrun would set, for a task of submitit's local executor; none elsewhere."""
    if environ.get("SUBMITIT_EXECUTOR") != "local" or int(environ["SUBMITIT_LOCAL_NTASKS"]) == 1:
        return {}
    tasks = environ["SUBMITIT_LOCAL_NTASKS"]
    return {
        "RANK": environ["SUBMITIT_LOCAL_GLOBALID"],
        "LOCAL_RANK": environ["SUBMITIT_LOCAL_LOCALID"],
        "WORLD_SIZE": tasks,
        "LOCAL_WORLD_SIZE": tasks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(derived_port(int(environ["SUBMITIT_LOCAL_JOB_ID"]))),
    }


def conclude(code: int, environ: Mapping[str, str]) -> int:
    """Turn the training program's exit code into the end of a task: return it, or raise as `PretrainTask` says."""
    if code == 0:
        return code
    reason = STOPPED_EXIT_CODES.get(code)
    if reason is None:
        raise TaskFailedError(f"the training program ended with exit code {code}; its messages are above")
    if environ.get("SUBMITIT_EXECUTOR") == "local" and reason.goes_on and reason != StopReason.TERM:
        raise SystemExit(LOCAL_RESTART)
    raise SystemExit(code)
