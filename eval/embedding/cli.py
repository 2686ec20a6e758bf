"""Embeddings of slides' patches: `python -m eval.embed`.

Takes slides and coordinates (--slides, --coords), slides alone, which are patched first (--slides), or stored pixels
(--patches), and writes for every slide
  OUT/h5_files/SLIDE.h5       features (N, D) float32 and coords (N, 2), as CLAM and TRIDENT do
  OUT/pt_files/SLIDE.pt       the features as a tensor
  OUT/state/embed/SLIDE.json  done, empty or failed and why; attempts; seconds
and for all of them OUT/embed_summary.md and .json.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dinov2.utils.errors import UserError
from eval.embedding.devices import embed_on_several, resolve_devices
from eval.embedding.feature_files import FORMATS
from eval.embedding.find import from_coordinates, from_patches, from_slides
from eval.embedding.loader import default_workers, spare_cores
from eval.embedding.options import PRECISIONS, EmbedOptions, SlideToEmbed
from eval.embedding.run import embed_slides
from eval.encoders import POOLINGS, make_encoder
from eval.errors import EvalError
from eval.patching.cli import add_patch_arguments, chosen_preset, given_patch_arguments, patch_options
from eval.patching.run import make_plan, run_patching
from eval.patching.slides import Shard, find_slides, take_shard
from eval.patching.state import SlideState
from eval.patching.summary import exit_code

EXAMPLES = """
encoders: --checkpoint takes a run or checkpoint folder, teacher.safetensors or DINOv2's .pth. --encoder takes
  timm:NAME, torchscript:FILE, factory:MODULE:FUNCTION, random:NAME, color-stats (see eval/encoders.py)

examples:
  python -m eval.patches --slides SLIDES --preset biopsy --out OUT
  python -m eval.embed --checkpoint runs/mvhybrid --slides SLIDES --coords OUT --out OUT/mvhybrid
  # both steps in one; two GPUs, bfloat16
  python -m eval.embed --checkpoint runs/mvhybrid --slides SLIDES --preset tcga --target-mpp 0.5 --out OUT \\
      --device cuda:0 cuda:1 --precision bf16 --batch-size 256
  # pixels stored by `python -m eval.patches --pixels h5`; a function of your own that returns (model, transform)
  python -m eval.embed --encoder factory:my_encoders:uni --patches OUT --out OUT/uni
  # one task of a job array (slurm/embed.sbatch)
  python -m eval.embed --checkpoint runs/mvhybrid --slides SLIDES --coords OUT --out OUT/mvhybrid --shard 0/4

Run again, it does what is missing, what failed, and what another encoder, precision, slide or coordinates ask for.
Exit codes: 0 all done; 1 a slide failed; 3 none failed, but a slide has no patches; 2 something given is wrong;
130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = make_parser().parse_args(arguments)
    try:
        devices = resolve_devices(args.device)
        if len(devices) > 1:
            return embed_on_several(devices, args.shard, arguments)
        states, empty = run(args, arguments, devices[0])
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return 130
    report(states, empty, args.out)
    return exit_code(states) or (3 if empty else 0)


def run(args: argparse.Namespace, arguments: Sequence[str], device: str) -> tuple[list[SlideState], list[str]]:
    """Embed what parsed arguments ask for; return the slides' states, and the names of slides without tissue.

    Raises:
        EvalError: the arguments cannot be used.
    """
    if (args.checkpoint is None) == (args.encoder is None):
        raise EvalError("give one encoder: --checkpoint PATH or --encoder SPEC.")
    if args.workers is None:
        args.workers = default_workers(device)
    if args.batch_size < 1 or args.workers < 0:
        raise EvalError(f"--batch-size {args.batch_size}, --workers {args.workers}: at least 1 and 0.")
    spec = args.encoder or f"checkpoint:{args.checkpoint}"
    # The encoder first: loading it shows mistakes in seconds.
    encoder = make_encoder(spec, pooling=args.pooling, device=device, seed=args.seed)
    every = chosen_slides(args, arguments)
    here = take_shard(every, Shard.parse(args.shard) if args.shard else None)
    slides, empty = [slide for slide in here if not slide.empty], [slide.name for slide in here if slide.empty]
    options = EmbedOptions(
        out=args.out,
        batch_size=args.batch_size,
        precision=args.precision,
        formats=tuple(sorted(set(args.formats))),
        workers=args.workers,
        device=device,
        cache_dir=args.cache_dir,
    )
    settings = {"command": shlex.join(["python", "-m", "eval.embed", *arguments]), "pooling": args.pooling}
    names = [slide.name for slide in every if not slide.empty]
    return embed_slides(encoder, slides, options, progress=not args.quiet, settings=settings, names=names), empty


def chosen_slides(args: argparse.Namespace, arguments: Sequence[str]) -> list[SlideToEmbed]:
    """Return the slides of all shards, those of this one patched first where there are no coordinates.

    Raises:
        EvalError: no source of patches, or two; or options of patching where nothing is patched.
    """
    if args.patches is not None and (args.slides or args.coords):
        raise EvalError("--patches has pixels and coordinates: leave out --slides and --coords.")
    ignored = given_patch_arguments(args) if args.patches is not None or args.coords is not None else []
    if ignored:
        raise EvalError(
            f"{', '.join(ignored)}: the patches are those of {'--patches' if args.coords is None else '--coords'}. "
            "Leave these options out, or give --slides alone, which patches them anew."
        )
    if args.patches is not None:
        return from_patches(args.patches)
    if args.coords is not None and not args.slides:
        return from_coordinates(args.coords)
    if not args.slides:
        raise EvalError("nothing to embed: give --slides (with --coords or without), --coords or --patches.")
    coords = args.coords
    if coords is None:
        shard = Shard.parse(args.shard) if args.shard else None
        preset, options = chosen_preset(args), patch_options(args, args.out)
        plan = make_plan(args.slides, preset, mpp=args.mpp, mpp_csv=args.mpp_csv, shard=shard, out=args.out)
        settings = {"command": shlex.join(["python", "-m", "eval.embed", *arguments]), **options.settings()}
        workers = args.workers or spare_cores()
        run_patching(plan, options, workers=workers, progress=not args.quiet, settings=settings)
        coords = args.out
    return from_slides(find_slides(args.slides, coords), coords)


def report(states: Sequence[SlideState], empty: Sequence[str], out: Path) -> None:
    """Print what came out, and every slide that needs attention."""
    for state in states:
        if state.status != "done":
            print(f"{state.status}: {state.name}: {state.reason}", file=sys.stderr)
    for name in empty:
        print(f"empty: {name}: no tissue, see the patching job's summary", file=sys.stderr)
    done = [state for state in states if state.status == "done"]
    print(
        f"{len(states) + len(empty)} slides: {len(done)} embedded, {sum(s.patches for s in done):,} patches; "
        f"{sum(s.status == 'failed' for s in states)} failed. Written: {out}/h5_files, {out}/embed_summary.md"
    )


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.embed",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    encoder = parser.add_argument_group("encoder")
    encoder.add_argument("--checkpoint", metavar="PATH", help="a pretrained backbone")
    encoder.add_argument("--encoder", metavar="SPEC", help="another encoder, see below")
    encoder.add_argument(
        "--pooling", choices=POOLINGS, default="cls+mean", help="CLS token, mean of patch tokens, or both (default)"
    )
    encoder.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32", help="default: fp32")
    encoder.add_argument("--seed", type=int, default=0, help="draws the weights of random encoders")
    what = parser.add_argument_group("what to embed")
    what.add_argument("--slides", type=Path, nargs="+", help="slides, or folders of slides")
    what.add_argument("--coords", type=Path, help="folder of coordinate files (of eval.patches, CLAM or TRIDENT)")
    what.add_argument("--patches", type=Path, help="folder of h5 files with pixels (img or imgs) and coords")
    what.add_argument("--out", type=Path, required=True, help="output folder")
    what.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="default: h5 pt")
    work = parser.add_argument_group("execution")
    work.add_argument("--device", nargs="+", default=["auto"], help="auto (default), cpu, cuda, cuda:0 cuda:1 ...")
    work.add_argument("--batch-size", type=int, default=64, help="patches a forward pass (default 64)")
    work.add_argument(
        "--workers", type=int, help="reading processes; 0 reads in a thread (default: 0 on a CPU, else by cores)"
    )
    work.add_argument("--shard", metavar="i/n", help="do every n-th slide only, from number i (0 to n - 1) on")
    work.add_argument("--quiet", action="store_true", help="no progress bars")
    add_patch_arguments(parser)
    return parser
