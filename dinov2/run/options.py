"""The command line of `python -m dinov2.run.submit`."""

import argparse
import re

EXAMPLES = """\
examples:
  # three nodes of eight GPUs, 48 hours
  python -m dinov2.run.submit --nodes 3 --ngpus 8 --partition gpu --time 2-00 \\
      --config-file configs/train/mvhybrid.yaml --output-dir runs/mvhybrid train.dataset_path=Folder:root=TILES

  # an array of jobs, one a configuration, each in runs/backbones/<name of the file>
  python -m dinov2.run.submit --ngpus 8 --partition gpu --output-dir runs/backbones \\
      --array-of-configs configs/train/*.yaml train.dataset_path=Folder:root=TILES

  # two processes on this machine, without GPUs
  python -m dinov2.run.submit --cluster local --ngpus 0 --tasks-per-node 2 \\
      --config-file configs/train/tiny_cpu.yaml --output-dir runs/tiny train.dataset_path=Folder:root=TILES

Every job runs `python -m dinov2.train` with one process a GPU. Before the time limit, and when pre-empted, all
processes save together and the job goes back to the queue, where it resumes. Logs are in OUTPUT/submitit/<job>.

Exit codes: 0 submitted (local and debug: finished); 1 the local job failed or was stopped; 2 something given is wrong.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `python -m dinov2.run.submit`."""
    parser = argparse.ArgumentParser(
        prog="python -m dinov2.run.submit",
        description="Submit pretraining to Slurm, or run the same job on this machine.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to train")
    source = what.add_mutually_exclusive_group(required=True)
    source.add_argument("--config-file", metavar="YAML", help="configuration of the one job")
    source.add_argument("--array-of-configs", nargs="+", metavar="YAML", help="configurations of an array of jobs")
    what.add_argument("--output-dir", required=True, metavar="RUN", help="run folder, which all nodes must see")
    what.add_argument("--force", action="store_true", help="go on in a run folder of another configuration")
    what.add_argument("opts", nargs="*", metavar="section.key=value", help="overrides, for every job")
    job = parser.add_argument_group("what the job asks for")
    job.add_argument("--cluster", choices=("slurm", "local", "debug"), default="slurm", help="default: slurm")
    job.add_argument("--nodes", type=_positive, default=1, help="default: 1")
    job.add_argument("--ngpus", type=_count, default=8, help="GPUs a node, with one task each; default: 8")
    job.add_argument("--tasks-per-node", type=_positive, metavar="N", help="default: --ngpus, at least 1")
    job.add_argument(
        "--time",
        "--timeout",
        type=minutes,
        default=2880,
        metavar="LIMIT",
        help="minutes, H:MM:SS or D-HH; default: 2-00",
    )
    job.add_argument("--cpus-per-task", type=_positive, metavar="N")
    job.add_argument("--mem", metavar="SIZE", help="memory a node, such as 64G")
    for name in ("partition", "qos", "account", "constraint", "comment", "exclude"):
        job.add_argument(f"--{name}", help=f"Slurm's --{name}")
    return parser


def minutes(text: str) -> int:
    """Return a time limit in whole minutes, from minutes or Slurm's H:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS.

    Raises:
        ValueError: the text is none of these, or less than a minute.
    """
    match = re.fullmatch(r"(?:(?P<days>\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise ValueError(text)
    days, parts = match["days"], [int(part) for part in match.groups()[1:] if part is not None]
    units = {1: [60], 2: [60, 1], 3: [3600, 60, 1]}[len(parts)] if days is None else [3600, 60, 1]
    seconds = 86400 * int(days or 0) + sum(part * unit for part, unit in zip(parts, units, strict=False))
    if seconds < 60:
        raise ValueError(text)
    return seconds // 60


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number
