"""`python -m dinov2.run.submit`: training as a Slurm job, or the same job on this machine."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit

from dinov2.distributed.parallelize import resolve_strategy
from dinov2.run.executor import Resources, deaf_to_ctrl_c, start_jobs
from dinov2.run.options import build_parser
from dinov2.run.task import PretrainTask, TaskFailedError
from dinov2.train.batch_plan import BatchPlan
from dinov2.train.requeue import check_stop_before
from dinov2.train.run_folder import check_run_folder, keep_global_batch
from dinov2.utils.config import load_config
from dinov2.utils.errors import UserError
from dinov2.utils.schema import SSLConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = build_parser().parse_intermixed_args(argv)
    try:
        resources = Resources(
            args.nodes, args.ngpus, args.tasks_per_node, args.time, args.cpus_per_task, args.mem, args.partition,
            args.qos, args.account, args.constraint, args.comment, args.exclude,
        )  # fmt: skip
        tasks = make_tasks(args, resources.processes)
        folder = Path(args.output_dir).absolute() / "submitit"
        if args.cluster == "slurm":
            for job in start_jobs(tasks, "slurm", folder, resources):
                print(announcement(job))
            return 0
        codes = []
        for task in tasks:  # one after the other: they share this machine
            (job,) = start_jobs([task], args.cluster, folder, resources)
            codes.append(_await(job))
        return max(codes)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def make_tasks(args: argparse.Namespace, processes: int) -> list[PretrainTask]:
    """Return one task a configuration, after checking what would fail hours later, when the job begins.

    Args:
        args: the parsed command line.
        processes: that each job will have.

    Raises:
        UserError: a configuration cannot be used by so many processes, its run folder holds something else, or two of
            an array have the same name.
    """
    # An option that takes several values also takes the overrides after them.
    given = args.array_of_configs or [args.config_file]
    configs = [Path(item).absolute() for item in given if "=" not in item]
    opts = [*(item for item in given if "=" in item), *args.opts]
    output = Path(args.output_dir).absolute()
    if len({config.stem for config in configs}) < len(configs):
        raise UserError("--array-of-configs: two files have the same name, which names their run folders; rename one")
    tasks = []
    for config in configs:
        run = output / config.stem if args.array_of_configs else output
        loaded = load_config(str(config), opts)
        if args.cluster == "slurm":
            check_stop_before(loaded.train.stop_before_minutes, args.time)
        _check(loaded, run, processes, args.force)
        force = ["--force"] if args.force else []
        tasks.append(PretrainTask(("--config-file", str(config), "--output-dir", str(run), *force, *opts)))
    return tasks


def _check(config: SSLConfig, run: Path, processes: int, force: bool) -> None:
    """Raise UserError as the training program would in its processes, wherever their devices and data do not matter."""
    resolve_strategy(config.parallel.strategy, processes, [processes])  # all nodes alike, however many
    keep_global_batch(run, config.train)
    config.train.global_batch_size = BatchPlan.from_config(config.train, config.optim, processes).global_batch
    check_run_folder(run, config, force)


def announcement(job: "submitit.Job[Any]") -> str:
    """Return what to tell about a job that was just submitted: its number, its logs, and how to watch and stop it."""
    return (
        f"submitted job {job.job_id}\n"
        f"  logs:   {job.paths.stdout} and, for errors, {job.paths.stderr} (_0_: the rank)\n"
        f"  watch:  squeue --jobs {job.job_id}; tail --follow=name --retry {job.paths.stderr}\n"
        f"  save and queue again:  scancel --signal=USR2 {job.job_id}\n"
        f"  save and end:          scancel --signal=INT {job.job_id}\n"
        f"  end within seconds:    scancel {job.job_id}"
    )


def _await(job: "submitit.Job[Any]") -> int:
    """Wait for a job on this machine; return 0 when it finished, 1 when it failed or was stopped."""
    print(f"job {job.job_id} runs here; logs: {job.paths.stdout} and {job.paths.stderr}", flush=True)
    with deaf_to_ctrl_c():  # the job's processes answer it, and this one sees them end
        error = job.exception()
    if error is None:
        print(f"job {job.job_id} finished")
        return 0
    if not isinstance(error, submitit.core.utils.UncompletedJobError | TaskFailedError):
        raise error
    print(f"job {job.job_id}: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
