"""Look at a data set through a training configuration: what the model will see, sizes of tiles, failures, speed.

Prints the number of tiles (of a mixture also those of each part, and its share of the samples), sizes and decoding
failures of a random sample, and how many tiles a second one core decodes (all that a loader process does where the
device makes the crops) and turns into finished crops, from tiles that it has not read before. Writes a
picture, one row a tile: the tile with the boxes of its crops, both global crops with their masked patches darkened, and
the local crops, after all augmentations.
"""

import argparse
import io
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from dinov2.data.bad_tiles import NAMED, first_of
from dinov2.data.collate import MultiCropBatch, MultiCropCollator
from dinov2.data.datasets import Mixture, TileDataset, make_dataset
from dinov2.data.errors import BadTileError, DatasetError
from dinov2.data.inspect_picture import draw_grid
from dinov2.data.samples import Sample, SampleStream
from dinov2.data.stats import readable_tiles
from dinov2.data.workers import single_thread
from dinov2.utils.config import load_config
from dinov2.utils.errors import UserError
from dinov2.utils.files import replacing
from dinov2.utils.schema import SSLConfig

EXAMPLES = """\
examples:
  python -m dinov2.data.inspect Folder:root=TILES --config configs/train/mvhybrid.yaml --out grid.png
  python -m dinov2.data.inspect Folder:root=TILES --config configs/train/mvhybrid.yaml --out hed.png --n 8 \\
      crops.hed_jitter.p=1 crops.rotate90_p=0.75

Exit codes: 0 done, 2 something given is wrong, 130 stopped by Ctrl-C.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = _parser().parse_intermixed_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        if args.out.is_dir():
            raise UserError(f"--out {args.out} is a folder; name the picture's file, such as {args.out / 'grid.png'}")
        if args.n < 1 or args.sample < 1:
            raise UserError(f"--n {args.n}, --sample {args.sample}: both must be at least 1")
        config = load_config(args.config, args.opts)
        dataset = make_dataset(args.dataset)
        with single_thread():
            inspect(dataset, config, args.out, args.n, min(args.sample, len(dataset)))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def inspect(dataset: TileDataset, config: SSLConfig, out: Path, n: int, sample: int) -> None:
    """Print the figures of a data set and write the picture of its first `n` samples to `out` (PNG).

    Args:
        dataset: the tiles.
        config: of which crops, masks, patch size and seed matter.
        out: file of the picture.
        n: tiles in the picture.
        sample: tiles to decode for sizes, failures and speed.

    Raises:
        UserError: the picture cannot be made, because tiles cannot be decoded.
    """
    print(f"{len(dataset)} tiles")
    _print_parts(dataset)
    _print_survey(dataset, sample, config.train.seed)
    stream = SampleStream(dataset, config.crops, config.train.seed)
    samples = [stream[position] for position in range(n)]
    here = _collator(config, n, on_device=False)
    batch = here(samples)
    if not isinstance(batch, MultiCropBatch):
        raise DatasetError(f"no readable tile found for the picture; the last: {': '.join(batch.bad[-1])}")
    side = config.crops.global_crops_size // config.student.patch_size
    picture = draw_grid(samples, batch, config.crops, (side, side))
    with replacing(out) as temporary:
        picture.save(temporary, "PNG")
    _print_speed(stream, _collator(config, n, on_device=True), here, n, sample)
    print(f"wrote {out}: what the model sees, one row a tile")


def _print_parts(dataset: TileDataset, indent: str = "  ") -> None:
    """Print the size and the share of the samples of each part of a mixture."""
    if not isinstance(dataset, Mixture):
        return
    for part, weight in zip(dataset.parts, dataset.weights, strict=True):
        share = weight / sum(dataset.weights)
        print(f"{indent}{len(part)} tiles, {share:.2%} of the samples: such as {part.path(0)}")
        _print_parts(part, indent + "  ")


def _print_survey(dataset: TileDataset, count: int, seed: int) -> None:
    """Decode some tiles and print their sizes and the failures."""
    bad: list[BadTileError] = []
    tiles = readable_tiles(dataset, count, seed, bad)
    sizes = Counter(f"{tile.shape[-1]} x {tile.shape[-2]}" for tile in tiles)
    listed = ", ".join(f"{number} of {size} px" for size, number in sizes.most_common(NAMED))
    more = f", {len(sizes) - NAMED} further sizes" if len(sizes) > NAMED else ""
    print(f"{count} decoded at random: {listed or 'none readable'}{more}")
    print(f"{len(bad)} of them cannot be decoded")
    if bad:
        print(first_of([(failure.path, failure.reason) for failure in bad]))


def _collator(config: SSLConfig, batch: int, on_device: bool) -> MultiCropCollator:
    side, ibot = config.crops.global_crops_size // config.student.patch_size, config.ibot
    masks = ((side, side), ibot.mask_sample_probability, ibot.mask_ratio_min_max)
    return MultiCropCollator(config.crops, config.train.seed, batch, *masks, on_device=on_device)


Collate = Callable[[list[Sample]], object]


def _print_speed(stream: SampleStream, decode: Collate, finish: Collate, batch: int, count: int) -> None:
    """Time both on tiles that come after those of the survey and of the picture, and print what they do a second."""
    length = max(count // batch, 1) * batch
    seen = max(count, batch)
    indices = stream.order.indices_at(range(seen + 2 * length))
    read_before = len(indices) - seen - len(set(indices[seen:].tolist()) - set(indices[:seen].tolist()))
    decoding = _speed(stream, decode, batch, range(seen, seen + length))
    everything = _speed(stream, finish, batch, range(seen + length, seen + 2 * length))
    print(f"one core here: {decoding:.0f} tiles/s decoded for the device (data.augment=device)")
    print(f"               {everything:.0f} tiles/s with all crops made (data.augment=worker)")
    if read_before:
        print(
            f"               {read_before} of {2 * length} tiles were read before, so from memory: a disk may be slower"
        )
    print("               what the device does is not timed: scripts/bench/data.py --device cuda times it")


def _speed(stream: SampleStream, collate: Collate, batch: int, positions: range) -> float:
    """Tiles a second from disk to batches."""
    began = time.perf_counter()
    for first in positions[::batch]:
        collate([stream[position] for position in range(first, first + batch)])
    return len(positions) / (time.perf_counter() - began)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dinov2.data.inspect",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", metavar="DATASET", help="such as Folder:root=TILES")
    parser.add_argument("--config", required=True, metavar="YAML", help="of training, such as configs/train/*.yaml")
    parser.add_argument("--out", required=True, type=Path, metavar="PNG", help="the picture")
    parser.add_argument("--n", type=int, default=4, help="tiles in the picture; default: 4")
    parser.add_argument(
        "--sample", type=int, default=200, metavar="N", help="tiles to decode for sizes and speed; default: 200"
    )
    parser.add_argument("opts", nargs="*", metavar="section.key=value", help="overrides of the configuration")
    return parser


if __name__ == "__main__":
    sys.exit(main())
