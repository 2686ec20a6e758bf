"""`python -m dinov2.models`: the backbones with their parameters, operations and speed on this machine."""

import argparse
import sys
import time
from collections.abc import Sequence

import torch

from dinov2.models import IsotropicBackbone, build_backbone, get_spec, list_backbones
from dinov2.models.flops import count_flops, count_parameters
from dinov2.utils.machine import cpu_model

EXAMPLES = """\
examples:
  python -m dinov2.models
  python -m dinov2.models mvhybrid mvhybrid_tiny vit_base --sizes 224 256 512
  python -m dinov2.models --no-speed

Exit codes: 0 listed, 2 something given is wrong.
"""
STUDIED = ("vit12", "vit24", "vim_einfft", "hydra_einfft", "hydra_hybrid", "mvhybrid")
SPEED_BATCH, SPEED_SIZE = 4, 224  # images and their side in pixels
SPEED_SECONDS, SPEED_REPEATS = 0.5, 5  # no further repetition of a forward pass after so long, or so many


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dinov2.models",
        description="List backbones with their parameters, multiply-adds (GFLOPs, a multiply-add counted once) and "
        f"tokens/s on this machine (forward pass in float32 of {SPEED_BATCH} images of {SPEED_SIZE} px).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(list_backbones())
    parser.add_argument("names", nargs="*", default=list(STUDIED), help=f"of {known}, or NAME_SIZE")
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 256], metavar="PX", help="image sides in pixels")
    parser.add_argument("--no-speed", action="store_true", help="leave tokens/s out")
    args = parser.parse_args(argv)
    heads = [f"GFLOPs {size}" for size in args.sizes] + ([] if args.no_speed else ["tokens/s"])
    try:
        rows = [_row(name, args.sizes, not args.no_speed) for name in args.names]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{'backbone':<20}{'parameters':>12}" + "".join(f"{head:>13}" for head in heads) + "  blocks")
    print("\n".join(rows))
    if not args.no_speed:
        where = f"{cpu_model()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        print(f"tokens/s: forward, float32, {SPEED_BATCH} images of {SPEED_SIZE} px, on {where}")
    return 0


def tokens_per_second(model: IsotropicBackbone) -> float:
    """Return the tokens (patches, CLS and registers) that the fastest of a few forward passes handles in a second."""
    images = torch.randn(SPEED_BATCH, 3, SPEED_SIZE, SPEED_SIZE)
    model.eval()
    times: list[float] = []
    with torch.no_grad():
        tokens = model.forward_features(images[:1])["x_prenorm"].shape[1]  # also the warm-up
        while len(times) < SPEED_REPEATS and sum(times) < SPEED_SECONDS:
            begin = time.perf_counter()
            model.forward_features(images)
            times.append(time.perf_counter() - begin)
    return SPEED_BATCH * tokens / min(times)


def _row(name: str, sizes: Sequence[int], speed: bool) -> str:
    spec = get_spec(name)
    model = build_backbone(name)
    for size in sizes:
        model.patch_embed.grid(size, size)  # says what is wrong with a size
    flops = [count_flops(model, torch.zeros(1, 3, size, size)) / 1e9 for size in sizes]
    blocks = ", ".join(f"{g.count} x {g.sequence_mixer} + {g.channel_mixer}" for g in spec.blocks)
    millions = f"{count_parameters(model) / 1e6:.1f} M"
    rate = f"{tokens_per_second(model):>13,.0f}" if speed else ""
    return f"{name:<20}{millions:>12}" + "".join(f"{value:>13.2f}" for value in flops) + f"{rate}  {blocks}"


if __name__ == "__main__":
    sys.exit(main())
