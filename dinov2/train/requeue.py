"""A Slurm job's end of time, and the way back to the queue."""

import logging
import os
import subprocess
import time
from collections.abc import Mapping

from dinov2.train.interrupt import StopReason
from dinov2.utils.errors import ConfigError

logger = logging.getLogger("dinov2")
MAX_RESTARTS = 50
TIMEOUT = 60.0


def job_name(environ: Mapping[str, str]) -> str | None:
    """Return the number by which Slurm's commands address this job (`12`; `12_3` in an array); None outside Slurm.

    The plain number of one job of an array is also that of the whole array.
    """
    if array := environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ.get("SLURM_JOB_ID")


def job_deadline(environ: Mapping[str, str], stop_before_minutes: float) -> float | None:
    """Return the time (seconds since the epoch) from which a Slurm job should stop; None outside Slurm.

    It is `stop_before_minutes` before the job's end, which Slurm gives in SLURM_JOB_END_TIME (since 23.02) or by
    squeue. None as well for `stop_before_minutes` 0, and for a job without end.

    Raises:
        ConfigError: it is no later than the job's beginning (SLURM_JOB_START_TIME, else now).
    """
    job = job_name(environ)
    if stop_before_minutes <= 0:
        return None
    if not job:
        logger.warning("train.stop_before_minutes = %g has no effect: this is no Slurm job", stop_before_minutes)
        return None
    end = environ.get("SLURM_JOB_END_TIME") or _ask_squeue(job, "%e", SLURM_TIME_FORMAT="%s")
    if not end.isdigit():
        logger.warning("Slurm does not say when job %s ends (%r): train.stop_before_minutes has no effect", job, end)
        return None
    begin = float(environ.get("SLURM_JOB_START_TIME") or time.time())
    check_stop_before(stop_before_minutes, (float(end) - begin) / 60)
    return float(end) - 60 * stop_before_minutes


def check_stop_before(stop_before_minutes: float, limit_minutes: float) -> None:
    """Check that a job with this time limit has time to train before it is to stop.

    Raises:
        ConfigError: it would stop at its beginning, and again whenever it comes back from the queue.
    """
    if stop_before_minutes >= limit_minutes:
        raise ConfigError(
            f"train.stop_before_minutes = {stop_before_minutes:g}: must be less than the job's time limit, "
            f"{round(limit_minutes, 1):g} minutes; lower it, or ask for more time"
        )


def requeue_if_slurm(reason: StopReason, rank: int, environ: Mapping[str, str]) -> bool:
    """Put the Slurm job back into the queue after its state is saved; return whether that was done.

    Only rank 0 asks, and only for a job that Slurm still calls running: one that was cancelled, or that Slurm has
    queued again itself, is left alone. Slurm then kills the job's tasks on all nodes, so that every rank must have
    finished its part of the saving before this is called, and must await rank 0 after it (`process_group` does at its
    end): an early exit may take rank 0 along. At most MAX_RESTARTS times (that variable, default 50).

    Args:
        reason: why the run stopped, the same on all ranks; nothing is done for NONE and INT.
        rank: this process's number.
        environ: environment variables, such as `os.environ`.
    """
    job = job_name(environ)
    if not job or rank != 0 or not reason.goes_on:
        return False
    restarts, limit = (
        int(environ.get(name) or default)
        for name, default in (("SLURM_RESTART_COUNT", 0), ("MAX_RESTARTS", MAX_RESTARTS))
    )
    if restarts >= limit:
        logger.warning("job %s was queued %d times (MAX_RESTARTS=%d): not again; submit it anew", job, restarts, limit)
        return False
    state = _ask_squeue(job, "%T")
    if state != "RUNNING":
        logger.info("job %s is %s: not queued again", job, state or "unknown to squeue")
        return False
    logger.info("state saved: job %s goes back to the queue (restart %d of %d)", job, restarts + 1, limit)
    try:
        _run(["scontrol", "requeue", job])
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        logger.error("job %s could not be queued again (%s): submit it anew, it goes on", job, str(said).strip())
        return False
    return True


def _ask_squeue(job: str, field: str, **environ: str) -> str:
    try:
        return _run(["squeue", "--noheader", "--jobs", job, "--format", field], **environ).strip()
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("squeue cannot be asked about job %s: %s", job, error)
        return ""


def _run(command: list[str], **environ: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT, check=True, env={**os.environ, **environ}
    ).stdout
