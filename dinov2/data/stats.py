"""Mean and standard deviation of a data set's channels, printed as the YAML of `crops.normalize`."""

import argparse
import math
import sys
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from dinov2.data.bad_tiles import first_of
from dinov2.data.datasets import TileDataset, make_dataset
from dinov2.data.datasets.damage import refuse_damage
from dinov2.data.errors import BadTileError, DatasetError, TooManyBadTilesError
from dinov2.data.samplers import make_stream
from dinov2.utils.errors import UserError
from dinov2.utils.schema import NormalizeSection

EXAMPLES = """\
examples:
  python -m dinov2.data.stats Folder:root=TILES
  python -m dinov2.data.stats Folder:root=TILES --max-tiles 2000

What it prints goes into a configuration as it stands. Nothing is written; Ctrl-C ends it.
Exit codes: 0 done, 2 something given is wrong, 130 stopped by Ctrl-C.
"""


def channel_statistics(tiles: Iterable[Tensor]) -> NormalizeSection:
    """Mean and standard deviation (with divisor n) of each channel over the pixels of all tiles, in [0, 1].

    The sums are whole numbers, so the result is exact and does not depend on the order.

    Args:
        tiles: uint8 (3, H, W), of any sizes; a pixel counts as much in a large tile as in a small one.

    Raises:
        DatasetError: there is no tile, or a channel has the same value everywhere.
    """
    count, sums, squares = 0, torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    for tile in tiles:
        levels = tile.flatten(1).long()  # (3, H * W)
        count += levels.shape[1]
        sums += levels.sum(1)
        squares += levels.square_().sum(1)
    if not count:
        raise DatasetError("no tile could be decoded, so there are no statistics; repair the files or name another set")
    mean = sums.double() / count
    std = (squares.double() / count - mean.square()).clamp(min=0).sqrt()
    if not bool((std > 0).all()):
        raise DatasetError(
            f"all pixels have the same value in a channel (means {mean.tolist()}); crops.normalize.std "
            "must be positive: name tiles with something on them"
        )
    means, stds = (mean / 255).tolist(), (std / 255).tolist()
    return NormalizeSection((means[0], means[1], means[2]), (stds[0], stds[1], stds[2]))


def readable_tiles(
    dataset: TileDataset, count: int, seed: int, bad: list[BadTileError], max_bad_fraction: float = 1.0
) -> Iterable[Tensor]:
    """Decode `count` tiles of a data set in random order, with a progress bar; failures go to `bad`.

    Raises:
        TooManyBadTilesError: more than ceil(max_bad_fraction * count) cannot be decoded.
    """
    allowed = math.ceil(max_bad_fraction * count)
    order = make_stream(dataset, seed)
    for position in tqdm(range(count), unit="tile", disable=None):
        try:
            yield dataset.decode(order.index_at(position))
        except BadTileError as error:
            bad.append(error)
            if len(bad) > allowed:
                raise TooManyBadTilesError(
                    f"{len(bad)} of the first {position + 1} tiles cannot be decoded; of {count}, {allowed} are "
                    f"tolerated:\n{_names(bad)}\nRepair or remove them, or raise --max-bad-fraction (now "
                    f"{max_bad_fraction})"
                ) from error


def _names(bad: Sequence[BadTileError]) -> str:
    return first_of([(error.path, error.reason) for error in bad])


def to_yaml(statistics: NormalizeSection) -> str:
    """Write statistics as the section of a configuration file."""
    rows = [
        f"    {name}: [{', '.join(f'{value:.6f}' for value in values)}]" for name, values in vars(statistics).items()
    ]
    return "\n".join(["crops:", "  normalize:", *rows])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = _parser().parse_args(argv)
    try:
        if args.max_tiles < 1:
            raise UserError(f"--max-tiles {args.max_tiles}: it must be at least 1")
        if not 0 <= args.max_bad_fraction <= 1:
            raise UserError(f"--max-bad-fraction {args.max_bad_fraction} must be 0 to 1")
        dataset = make_dataset(args.dataset)
        refuse_damage(dataset, args.max_bad_fraction)
        count, bad = min(args.max_tiles, len(dataset)), list[BadTileError]()
        tiles = readable_tiles(dataset, count, args.seed, bad, args.max_bad_fraction)
        statistics = channel_statistics(tiles)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print(f"# {args.dataset}: {count - len(bad)} of {len(dataset)} tiles")
    print(to_yaml(statistics))
    if bad:
        print(f"{len(bad)} left out, cannot be decoded:\n{_names(bad)}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dinov2.data.stats",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", metavar="DATASET", help="such as Folder:root=TILES")
    parser.add_argument(
        "--max-tiles", type=int, default=10000, metavar="N", help="tiles to read, drawn at random; default: 10000"
    )
    parser.add_argument(
        "--max-bad-fraction", type=float, default=0.01, metavar="F", help="more bad tiles stop it; default: 0.01"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw; default: 0")
    return parser


if __name__ == "__main__":
    sys.exit(main())
