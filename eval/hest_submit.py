"""`python -m eval.hest submit`: one job an encoder, on Slurm or on this machine, with submitit.

Each job evaluates one encoder into OUT/<encoder>, with the embeddings of all in OUT/embeddings; a job that was
interrupted goes on with those that are there. The commands that then compare and join the results are printed.
"""

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dinov2.run.executor import Resources, deaf_to_ctrl_c, start_jobs
from dinov2.run.options import minutes
from eval.errors import EvalError
from eval.hest_options import extended_settings, fit_settings, parse

EXAMPLES = """examples:
  python -m eval.hest submit --partition gpu --time 4:00:00 -- --config configs/eval/hest_extended_hvg.yaml \\
      --checkpoint runs/mvhybrid runs/vit12 runs/vit24 --encoder color-stats \\
      --bench-root hest-extended --tasks CRC --out results/hvg --device cuda --batch-size 256
  python -m eval.hest submit --cluster local --ngpus 0 -- --encoder color-stats random:mvhybrid_tiny \\
      --bench-root hest-bench --tasks IDC --out results/local

What follows -- are options of `python -m eval.hest run`. Logs: OUT/submitit/<job>. The last lines printed are the
commands that compare the encoders, and put all into one table and report (OUT/joint), when the jobs are done.
Exit codes: 0 submitted (local: finished), 2 something given is wrong, or a local job failed, 130 interrupted.
"""


@dataclass(frozen=True)
class HestTask:
    """Runs `python -m eval.hest` with these arguments; a callable that submitit can store."""

    arguments: tuple[str, ...]

    @property
    def out(self) -> Path:
        """The results folder of this job."""
        return parse(self.arguments).out

    def __call__(self) -> int:
        """Evaluate and return 0.

        Raises:
            RuntimeError: the program failed; its message is in the job's log.
        """
        from eval.hest import main as evaluate

        if code := evaluate(list(self.arguments)):
            raise RuntimeError(f"python -m eval.hest {shlex.join(self.arguments)} ended with exit code {code}")
        return 0


def make_tasks(arguments: Sequence[str]) -> list[HestTask]:
    """One task for every encoder that the arguments of `run` name, after checking them.

    Raises:
        EvalError: the arguments cannot be used, name no encoder, or two whose folders would have the same name.
    """
    args = parse(arguments)
    fit_settings(args), extended_settings(args)
    encoders = [("--checkpoint", path) for path in args.checkpoint] + [("--encoder", spec) for spec in args.encoder]
    if not encoders:
        raise EvalError("no encoder given. Use --checkpoint PATH or --encoder SPEC after --.")
    folders = [folder_name(value) for _, value in encoders]
    if len(set(folders)) < len(folders):
        raise EvalError(f"two encoders would write into one folder: {', '.join(folders)}. Name each encoder once.")
    common = _without(list(arguments), ("--checkpoint", "--encoder", "--out", "--cache"))
    rest = parse([*common, "--out", str(args.out)])
    if rest.checkpoint or rest.encoder:
        raise EvalError(f"--config {args.config}: it names encoders, which all jobs would repeat. Name them after --.")
    cache = args.cache or args.out / "embeddings"
    return [
        HestTask((*common, option, value, "--out", str(args.out / folder), "--cache", str(cache)))
        for (option, value), folder in zip(encoders, folders, strict=True)
    ]


def folder_name(encoder: str) -> str:
    """A name for an encoder's results folder: its specification without what file systems dislike."""
    return re.sub(r"[^A-Za-z0-9.=-]+", "_", encoder.removesuffix("/teacher.safetensors")).strip("_.")


def main(argv: Sequence[str]) -> None:
    """`python -m eval.hest submit [job options] -- [options of run]`."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.hest submit",
        description="Evaluate many encoders, one job each, on Slurm or on this machine.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--cluster", choices=("slurm", "local", "debug"), default="slurm", help="default: slurm")
    parser.add_argument("--ngpus", type=int, choices=(0, 1), default=1, help="GPUs a job (default 1)")
    parser.add_argument("--time", type=minutes, default=480, metavar="LIMIT", help="minutes, H:MM:SS or D-HH (8 h)")
    parser.add_argument("--cpus-per-task", type=int, default=8, metavar="N", help="default: 8")
    parser.add_argument("--mem", metavar="SIZE", default="32G", help="memory a job (default 32G)")
    for name in ("partition", "qos", "account", "constraint"):
        parser.add_argument(f"--{name}", help=f"Slurm's --{name}")
    given = list(argv)
    after = given[given.index("--") + 1 :] if "--" in given else []
    args = parser.parse_args(given[: given.index("--")] if "--" in given else given)
    if not after:
        raise EvalError("nothing to run: put the options of `python -m eval.hest run` after -- (see --help).")
    tasks = make_tasks(after)
    out = parse(after).out.absolute()
    resources = Resources(
        gpus=args.ngpus,
        tasks_per_node=1,
        minutes=args.time,
        cpus_per_task=args.cpus_per_task,
        memory=args.mem,
        partition=args.partition,
        qos=args.qos,
        account=args.account,
        constraint=args.constraint,
    )
    if args.cluster == "slurm":
        for task, job in zip(tasks, start_jobs(tasks, "slurm", out / "submitit", resources, "eval-hest"), strict=True):
            print(f"submitted job {job.job_id}: python -m eval.hest {shlex.join(task.arguments)}")
        print(f"logs: {out / 'submitit'}")
    else:
        for task in tasks:  # one after the other: they share this machine
            (job,) = start_jobs([task], args.cluster, out / "submitit", resources, "eval-hest")
            with deaf_to_ctrl_c():
                error = job.exception()
            if error is not None:
                last = str(error).strip().splitlines()[-1]
                raise EvalError(f"job {job.job_id} failed: {last} (log: {job.paths.stderr})")
            print(f"finished: python -m eval.hest {shlex.join(task.arguments)}")
    folders = [str(task.out.absolute()) for task in tasks]
    print(f"when all are done: {shlex.join(['python', '-m', 'eval.compare', *folders])}")
    print(f"and: {shlex.join(['python', '-m', 'eval.hest', 'report', *folders, '--out', str(out / 'joint')])}")


def _without(arguments: list[str], options: Sequence[str]) -> list[str]:
    """The arguments less these options and all their values."""
    kept, dropping = [], False
    for argument in arguments:
        if argument.startswith("--"):
            dropping = argument.partition("=")[0] in options
        if not dropping:
            kept.append(argument)
    return kept
