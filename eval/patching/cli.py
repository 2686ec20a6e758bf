"""Tissue segmentation and patching of whole slides: `python -m eval.patches`.

Finds the tissue as CLAM does, lays a grid of patches over it, and writes for every slide
  OUT/patches/SLIDE.h5               coordinates, readable by CLAM and TRIDENT (and pixels, with --pixels h5)
  OUT/contours_geojson/SLIDE.geojson contours, for QuPath
  OUT/masks/SLIDE.jpg                thumbnail with contours (green), holes (blue) and patches (red)
  OUT/state/patches/SLIDE.json       done, empty or failed and why; attempts; seconds
and for all slides in OUT, those of earlier calls included, OUT/process_list_autogen.csv, OUT/patches_summary.md and
.json, and OUT/slides.csv, with which `Slides:manifest=OUT/slides.csv:coords=OUT` is a data set of the patches.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dinov2.utils.errors import UserError
from eval.errors import EvalError
from eval.patching.options import PatchOptions
from eval.patching.pixels import PIXEL_FORMATS
from eval.patching.presets import Preset, load_preset
from eval.patching.run import make_plan, run_patching
from eval.patching.slides import Shard
from eval.patching.state import SlideState
from eval.patching.summary import exit_code

EXAMPLES = """
examples:
  # the paper's patches: CLAM's biopsy preset, 256 px of level 0
  python -m eval.patches --slides SLIDES --preset biopsy --patch-size 256 --level 0 --out LEVEL0
  # 0.5 um per px (20x) whatever the scanner, eight processes; then only the contours' numbers 0 and 2 of one slide
  python -m eval.patches --slides SLIDES --preset tcga --target-mpp 0.5 --workers 8 --out AT20X
  python -m eval.patches --slides SLIDES/a.svs --preset tcga --target-mpp 0.5 --set keep_ids=0,2 --out AT20X
  # with other parameters for some slides: edit the list that the call before has written
  python -m eval.patches --slides SLIDES --process-list AT20X/process_list_autogen.csv --target-mpp 0.5 --out AT20X
  # slides of which some lack a resolution; tiles as JPEG files for pretraining with Folder:root=TILES/tiles
  python -m eval.patches --slides SLIDES --mpp 0.25 --target-mpp 0.5 --pixels jpeg --out TILES
  # a quarter of the slides, as one task of a job array (slurm/patches.sbatch)
  python -m eval.patches --slides SLIDES --preset resection --shard 0/4 --out RESECTION
  # features by TRIDENT: the coordinates under the names that it looks for
  mkdir -p AT20X/trident/patches
  for f in AT20X/patches/*.h5; do ln -f "$f" "AT20X/trident/patches/$(basename "$f" .h5)_patches.h5"; done
  python run_batch_of_slides.py --task feat --wsi_dir SLIDES --job_dir AT20X --coords_dir trident --patch_encoder ...

Run again, it does what is missing, what failed, and what other settings or a changed slide ask for. Other settings
replace a slide's files: give each set of settings an OUT of its own. A further format of --pixels is added.
Exit codes: 0 all done; 1 a slide failed; 3 none failed, but a slide has no tissue; 2 something given is wrong;
130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = make_parser().parse_args(arguments)
    try:
        states = run(args, arguments)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return 130
    report(states, args.out)
    return exit_code(states)


def run(args: argparse.Namespace, arguments: Sequence[str]) -> list[SlideState]:
    """Do what parsed arguments ask for.

    Raises:
        EvalError: they cannot be used.
    """
    options = patch_options(args, args.out)
    if args.workers < 1:
        raise EvalError(f"--workers {args.workers}: it must be 1 or more.")
    plan = make_plan(
        args.slides,
        chosen_preset(args),
        mpp=args.mpp,
        mpp_csv=args.mpp_csv,
        process_list=args.process_list,
        shard=Shard.parse(args.shard) if args.shard else None,
        out=args.out,
    )
    settings = {"command": shlex.join(["python", "-m", "eval.patches", *arguments]), **options.settings()}
    return run_patching(plan, options, workers=args.workers, progress=not args.quiet, settings=settings)


def chosen_preset(args: argparse.Namespace) -> Preset:
    """Return the preset with the changes of `--set`.

    Raises:
        EvalError: an unknown preset or parameter, or a change without a value.
    """
    changes = dict[str, str]()
    for pair in args.set:
        name, _, value = pair.partition("=")
        if not value.strip():
            raise EvalError(f"--set {pair}: it must be NAME=VALUE, e.g. sthresh=20.")
        changes[name] = value
    return load_preset(args.preset).updated(changes, "--set")


def patch_options(args: argparse.Namespace, out: Path) -> PatchOptions:
    """Return the options that the arguments of `add_patch_arguments` describe.

    Raises:
        EvalError: sizes that make no sense.
    """
    if args.patch_size < 1:
        raise EvalError(f"--patch-size {args.patch_size}: it must be 1 or more.")
    overlap = args.overlap if args.step is None else args.patch_size - args.step
    if overlap >= args.patch_size or (args.step is None and overlap < 0):
        given = f"--overlap {args.overlap}" if args.step is None else f"--step {args.step}"
        raise EvalError(f"{given}: neighbours must lie at least 1 px apart, and --overlap must be 0 or more.")
    target = args.target_mpp if args.target_magnification is None else 10 / max(args.target_magnification, 1e-9)
    if target is not None and not 0 < target < 1000:
        raise EvalError(f"the target of {target:g} um per px makes no sense. 20x is --target-mpp 0.5.")
    return PatchOptions(
        out=out,
        patch_size=args.patch_size,
        overlap=overlap,
        level=None if target is not None else args.level or 0,
        target_mpp=target,
        pixels=tuple(sorted(set(args.pixels))),
        drop_blank=args.drop_blank,
        overview=not args.no_overview,
        cache_dir=args.cache_dir,
    )


def report(states: Sequence[SlideState], out: Path) -> None:
    """Print what came out, and every slide that needs attention."""
    for state in states:
        if state.status != "done":
            print(f"{state.status}: {state.name}: {state.reason}", file=sys.stderr)
    counts = {status: sum(s.status == status for s in states) for status in ("done", "empty", "failed")}
    print(
        f"{len(states)} slides: {counts['done']} done, {counts['empty']} without tissue, {counts['failed']} failed; "
        f"{sum(s.patches for s in states):,} patches. Written: {out}/patches, {out}/patches_summary.md"
    )


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.patches",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--slides", type=Path, nargs="+", required=True, help="slides, or folders of slides")
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    add_patch_arguments(parser)
    work = parser.add_argument_group("execution")
    work.add_argument("--process-list", type=Path, help="CSV of slides and parameters, as CLAM writes it")
    work.add_argument("--workers", type=int, default=1, help="processes, a slide each (default 1)")
    work.add_argument("--shard", metavar="i/n", help="do every n-th slide only, from number i (0 to n - 1) on")
    work.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def given_patch_arguments(args: argparse.Namespace) -> list[str]:
    """Return the options of `add_patch_arguments`, --cache-dir apart, that differ from their defaults."""
    parser = argparse.ArgumentParser()
    add_patch_arguments(parser)
    defaults = vars(parser.parse_args([]))
    return [
        f"--{name.replace('_', '-')}"
        for name, value in defaults.items()
        if name != "cache_dir" and getattr(args, name) != value
    ]


def add_patch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide which patches a slide has."""
    tissue = parser.add_argument_group("tissue")
    tissue.add_argument(
        "--preset", default="biopsy", help="biopsy (default), resection, tcga, or a CSV with CLAM's columns"
    )
    tissue.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="change the preset, e.g. sthresh=20"
    )
    patches = parser.add_argument_group("patches")
    patches.add_argument("--patch-size", type=int, default=256, help="px (default 256)")
    where = patches.add_mutually_exclusive_group()
    where.add_argument("--level", type=int, help="take this level's own pixels (default 0)")
    where.add_argument("--target-mpp", type=float, help="um per px; resampled where no level has it")
    where.add_argument("--target-magnification", type=float, metavar="X", help="the same: 20 is 0.5 um per px")
    distance = patches.add_mutually_exclusive_group()
    distance.add_argument("--overlap", type=int, default=0, help="of neighbours, px (default 0)")
    distance.add_argument("--step", type=int, help="distance of neighbours, px (default: the patch size)")
    patches.add_argument(
        "--mpp", type=float, help="um per px of level 0 where the metadata lack it or contradict themselves"
    )
    patches.add_argument(
        "--mpp-csv", type=Path, metavar="CSV", help="slide_id and mpp of slides whose metadata lack it or are wrong"
    )
    patches.add_argument(
        "--drop-blank", action="store_true", help="leave out patches below white_thresh or black_thresh"
    )
    patches.add_argument(
        "--pixels",
        nargs="+",
        default=[],
        choices=PIXEL_FORMATS,
        help="write pixels too: in the h5 (imgs and img), as OUT/shards/SLIDE.tar, as OUT/tiles/SLIDE/X_Y.jpg",
    )
    patches.add_argument("--no-overview", action="store_true", help="no pictures in OUT/masks")
    patches.add_argument("--cache-dir", type=Path, help="copy each slide to this (local) folder before reading it")
