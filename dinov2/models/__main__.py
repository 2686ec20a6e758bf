"""`python -m dinov2.models`: the backbones with their parameters and operations."""

import argparse
import sys
from collections.abc import Sequence

import torch

from dinov2.models import build_backbone, get_spec, list_backbones
from dinov2.models.flops import count_flops, count_parameters

EXAMPLES = """\
examples:
  python -m dinov2.models
  python -m dinov2.models mvhybrid mvhybrid_tiny vit_base --sizes 224 256 512
"""
STUDIED = ("vit12", "vit24", "vim_einfft", "hydra_einfft", "hydra_hybrid", "mvhybrid")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dinov2.models",
        description="List backbones with their parameters and multiply-adds (GFLOPs, a multiply-add counted once).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(list_backbones())
    parser.add_argument("names", nargs="*", default=list(STUDIED), help=f"of {known}, or NAME_SIZE")
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 256], metavar="PX", help="image sides in pixels")
    args = parser.parse_args(argv)
    heads = [f"GFLOPs {size}" for size in args.sizes]
    try:
        rows = [_row(name, args.sizes) for name in args.names]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{'backbone':<14}{'parameters':>12}" + "".join(f"{head:>13}" for head in heads) + "  blocks")
    print("\n".join(rows))
    return 0


def _row(name: str, sizes: Sequence[int]) -> str:
    spec = get_spec(name)
    model = build_backbone(name)
    flops = [count_flops(model, torch.zeros(1, 3, size, size)) / 1e9 for size in sizes]
    blocks = ", ".join(f"{g.count} x {g.sequence_mixer} + {g.channel_mixer}" for g in spec.blocks)
    millions = f"{count_parameters(model) / 1e6:.1f} M"
    return f"{name:<14}{millions:>12}" + "".join(f"{value:>13.2f}" for value in flops) + f"  {blocks}"


if __name__ == "__main__":
    sys.exit(main())
