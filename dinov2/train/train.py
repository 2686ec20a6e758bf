"""The one training program: command line, run folder, and the loop over steps."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dinov2.distributed.env import rank
from dinov2.distributed.launch import find_launch
from dinov2.distributed.process_group import DeviceError, process_group
from dinov2.train.interrupt import StopRequest
from dinov2.train.replay import replay
from dinov2.train.trainer import Trainer
from dinov2.utils.config import load_config
from dinov2.utils.errors import DivergenceError, UserError
from dinov2.utils.schema import SSLConfig

EXAMPLES = """\
examples:
  # the paper's MVHybrid on a folder of tiles
  python -m dinov2.train --config-file configs/train/mvhybrid.yaml --output-dir runs/mvhybrid \\
      train.dataset_path=Folder:root=TILES

  # two processes on this machine, sharded with FSDP
  torchrun --nproc-per-node 2 -m dinov2.train --config-file configs/train/mvhybrid.yaml --output-dir runs/mvhybrid \\
      train.dataset_path=Folder:root=TILES

  # the laptop recipe with another backbone, for 100 steps
  python -m dinov2.train --config-file configs/train/tiny_cpu.yaml --output-dir runs/vit \\
      student.arch=vit12 train.max_steps=100 train.dataset_path=Folder:root=TILES

  # a step that ended a run because its loss was NaN: where does it go wrong, and does float32 help?
  python -m dinov2.train --replay runs/vit/diverged/1234/rank0.pt
  python -m dinov2.train --replay runs/vit/diverged/1234/rank0.pt compute_precision.dtype=fp32

The same command run again goes on where the run stopped. On SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C the state is saved at
the end of the step; under Slurm the job then goes back to the queue, but not on Ctrl-C. Exit codes: 0 finished (with
--replay: all is finite); 1 the loss diverged (something is not finite); 2 something given is wrong; 124 the job's time
was nearly over; 130, 138, 140, 143 stopped by Ctrl-C, SIGUSR1, SIGUSR2, SIGTERM, with the state saved.

torchrun passes SIGTERM and SIGINT on to its processes, kills those that have not saved and ended within 30 seconds, and
has exit codes of its own. SIGUSR1 and SIGUSR2 end torchrun itself and leave its processes behind, unless it is told to
pass them on as well: torchrun --signals-to-handle SIGTERM,SIGINT,SIGUSR1,SIGUSR2 --shutdown-timeout 120 ... (seconds to
save; older releases of PyTorch have neither option). Under srun and submitit every process gets the signals itself.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `python -m dinov2.train`."""
    parser = argparse.ArgumentParser(
        prog="python -m dinov2.train",
        description="Pretrain a backbone with the DINOv2 objective.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--config-file", metavar="YAML", help="configuration, such as configs/train/*.yaml")
    task.add_argument(
        "--replay", type=Path, metavar="FILE", help="compute a step again that was kept because it diverged"
    )
    parser.add_argument("--output-dir", metavar="RUN", help="run folder (default: train.output_dir)")
    parser.add_argument("--force", action="store_true", help="go on in a run folder of another configuration")
    parser.add_argument(
        "opts",
        nargs="*",
        metavar="section.key=value",
        help="overrides; configs/ssl_default_config.yaml lists every key",
    )
    return parser


def main(argv: Sequence[str] | None = None, stop: StopRequest | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the arguments, None for this program's own.
        stop: the request to stop to watch, where one was made before this module was loaded.
    """
    args = build_parser().parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S")
    try:
        if args.replay:
            return replay(args.replay, args.opts)
        config = load_config(args.config_file, args.opts)
        if args.output_dir:
            config.train.output_dir = args.output_dir
        return train(config, args.force, stop)
    except (UserError, OSError) as error:
        follower = _follower()
        # In a group rank 0 speaks for all, and what only one rank knows is in its log; before, each is on its own.
        if not follower or (rank() == 0 and not isinstance(error, DeviceError)):
            print(f"error{follower}: {error}", file=sys.stderr)
        return 1 if isinstance(error, DivergenceError) else 2


def _follower() -> str:
    """Return which rank this process was started as, and where; '' for rank 0."""
    try:
        launch = find_launch(os.environ)
    except UserError:
        return ""
    return f" ({launch})" if launch.rank else ""


def train(config: SSLConfig, force: bool = False, stop: StopRequest | None = None) -> int:
    """Train as the configuration says, resuming what its output folder holds; return the exit code.

    `force` goes on in a folder of another configuration, `stop` is the request to watch (see `Trainer.run`).

    Raises:
        UserError: the configuration, the data or the output folder cannot be used.
    """
    launch = find_launch(os.environ)
    if launch.rank:
        # Rank 0 speaks for all, but for tiles that it has not seen.
        logging.getLogger().setLevel(logging.WARNING)
        logging.getLogger("dinov2").setLevel(logging.ERROR)
        logging.getLogger("dinov2.data").setLevel(logging.WARNING)
    timeout = config.parallel.timeout_minutes
    with process_group(launch, config.train.device, timeout) as device:
        return Trainer(config, Path(config.train.output_dir), force, device, launch.local_world_size).run(stop)
