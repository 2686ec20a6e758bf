"""`python -m dinov2.data.pack`: any data set into tar shards or HDF5 files that a cluster reads well.

Shard k holds the tiles k * shard_size and on, so an interrupted run is continued by the same command: complete shards,
which the manifest lists, are kept. Tiles that cannot be decoded are left out and named in the manifest.
Of a mixture every tile is packed once; the weights are not kept.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from dinov2.data.bad_tiles import BadTileMonitor
from dinov2.data.datasets import TileDataset, make_dataset
from dinov2.data.datasets.damage import refuse_damage
from dinov2.data.errors import DatasetError
from dinov2.data.fingerprint import fingerprint
from dinov2.data.pack_manifest import MANIFEST, Manifest, PackPlan, ShardRecord, file_sha256
from dinov2.data.pack_shards import SHARD_WRITERS
from dinov2.data.pack_tiles import JPEG, ORIGINAL, PIXELS, PackedTile, TileReader, keep_list
from dinov2.data.workers import init_worker
from dinov2.utils.errors import UserError
from dinov2.utils.file_lock import acquire_lock
from dinov2.utils.files import replacing

LOCK_FILE = ".lock"
READ_TOGETHER = 16  # tiles that a worker hands over at a time
EXAMPLES = """\
examples:
  python -m dinov2.data.pack Folder:root=TILES --out packed                            # tar shards, files as they are
  python -m dinov2.data.pack Folder:root=TILES --out packed --jpeg-quality 90 --workers 8
  python -m dinov2.data.pack H5:root=PATCHES --out packed --shard-size 5000
  python -m dinov2.data.pack Folder:root=TILES --out packed_h5 --format h5
  python -m dinov2.data.pack --out packed --verify                                     # compare all checksums

It writes DIR/shard-000000.tar (or .h5), shard-000001.tar, ... and DIR/manifest.json. The same command again continues
an interrupted run. Exit codes: 0 packed or verified, 1 a shard is missing or differs, 2 something given is wrong,
130 interrupted.
"""


def pack(
    dataset: TileDataset, plan: PackPlan, out: Path, *, workers: int = 0, max_bad_fraction: float = 0.01
) -> Manifest:
    """Write the shards of a plan that a folder does not have yet, and return the manifest.

    Args:
        dataset: what the plan describes.
        plan: see `make_plan`.
        out: folder, made where it does not exist.
        workers: processes that read and encode; 0 does it here.
        max_bad_fraction: of tiles that cannot be decoded; more stop the run.

    Raises:
        DatasetError: the folder holds another data set or is being packed by another process, or a tile does not fit
            the format.
        TooManyBadTilesError: see `BadTileMonitor` and `refuse_damage`.
    """
    refuse_damage(dataset, max_bad_fraction)
    with _alone_in(out):
        return _pack_alone(dataset, plan, out, workers, max_bad_fraction)


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made, and remove what a run that was killed left there.

    Raises:
        DatasetError: another process packs into it, or it cannot be written.
    """
    try:
        descriptor, holder = acquire_lock(out / LOCK_FILE)
    except OSError as error:
        raise DatasetError(f"--out {out} cannot be written: {error}") from error
    if descriptor is None:
        raise DatasetError(
            f"--out {out} is being packed by another process{holder}; wait for it, or give another --out"
        )
    try:
        try:
            for left in out.glob(".shard-*.tmp"):
                left.unlink()
        except OSError as error:
            raise DatasetError(f"--out {out} cannot be written: {error}") from error
        yield
    finally:
        os.close(descriptor)


def _pack_alone(dataset: TileDataset, plan: PackPlan, out: Path, workers: int, max_bad_fraction: float) -> Manifest:
    manifest = Manifest.load(out) or Manifest(plan)
    if differences := manifest.plan.differences(plan):
        raise DatasetError(f"{out} is packed differently: {differences}; give another --out")
    _drop_changed(manifest, out)
    monitor = BadTileMonitor(max_bad_fraction, plan.tiles, "left out")
    for record in manifest.shards.values():
        monitor.update(record.bad, record.tiles + len(record.bad))
    wanted = [number for number in range(plan.shards) if plan.shard_name(number) not in manifest.shards]
    tiles = _read(dataset, plan, wanted, workers)
    done = plan.tiles - sum(len(plan.tiles_of(number)) for number in wanted)
    with (
        logging_redirect_tqdm(),
        tqdm(total=plan.tiles, initial=done, unit=" tiles", desc="packing", disable=None) as bar,
    ):
        for number in wanted:
            part = islice(tiles, len(plan.tiles_of(number)))
            try:
                manifest.shards[plan.shard_name(number)] = _write_shard(plan, number, part, out, monitor, bar)
                manifest.save(out)
            except OSError as error:
                raise DatasetError(
                    f"{out / plan.shard_name(number)} cannot be written: {error}; the same command continues from here"
                ) from error
    return manifest


def make_plan(
    spec: str, dataset: TileDataset, shard_format: str = "tar", shard_size: int = 10_000, quality: int | None = None
) -> PackPlan:
    """Check the options and describe what is to be packed.

    Raises:
        DatasetError: an impossible size or quality, or a quality for h5, which holds pixels.
    """
    if shard_size < 1:
        raise DatasetError(f"--shard-size {shard_size} must be at least 1 tile")
    if quality is not None and not 1 <= quality <= 100:
        raise DatasetError(f"--jpeg-quality {quality} must be 1 to 100")
    if quality is not None and shard_format == "h5":
        raise DatasetError("--jpeg-quality does not go with --format h5, which holds pixels; leave it out or write tar")
    encoding = PIXELS if shard_format == "h5" else ORIGINAL if quality is None else JPEG
    return PackPlan(spec, fingerprint(dataset), len(dataset), shard_format, shard_size, encoding, quality or 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Pack or verify as the command line says and return the exit code."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return _verify(args.out) if args.verify else _pack(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130


def _pack(args: argparse.Namespace) -> int:
    if args.dataset is None:
        raise DatasetError("no data set given; write for example Folder:root=TILES")
    if args.workers < 0:
        raise DatasetError(f"--workers {args.workers} must not be negative")
    if not 0 <= args.max_bad_fraction <= 1:
        raise DatasetError(f"--max-bad-fraction {args.max_bad_fraction} must be 0 to 1")
    dataset = make_dataset(args.dataset)
    plan = make_plan(args.dataset, dataset, args.format, args.shard_size, args.jpeg_quality)
    manifest = pack(dataset, plan, args.out, workers=args.workers, max_bad_fraction=args.max_bad_fraction)
    tiles = sum(record.tiles for record in manifest.shards.values())
    size = sum(record.bytes for record in manifest.shards.values())
    bad = sum(len(record.bad) for record in manifest.shards.values())
    left_out = f", {bad} bad tiles left out (see {MANIFEST})" if bad else ""
    print(f"{args.out}: {tiles:,} tiles in {plan.shards} shards, {size / 1e6:,.1f} MB{left_out}; use it as")
    print(f"  {usage(plan, args.out)}")
    return 0


def _verify(out: Path) -> int:
    manifest = Manifest.load(out)
    if manifest is None:
        raise DatasetError(f"{out / MANIFEST} does not exist; give the folder that pack has written as --out")
    faults = manifest.faults(out)
    for fault in faults:
        print(fault)
    print(f"{out}: {'NOT as packed' if faults else f'all {manifest.plan.shards} shards are as they were packed'}")
    return 1 if faults else 0


def usage(plan: PackPlan, out: Path) -> str:
    """The data set string that reads what was packed."""
    if plan.format == "h5":
        return f"H5:root={out}"
    last = plan.shards - 1
    return f"Tar:shards={out}/shard-{{000000..{last:06d}}}.tar" if last else f"Tar:shards={out}/shard-000000.tar"


def _drop_changed(manifest: Manifest, out: Path) -> None:
    for name, record in list(manifest.shards.items()):
        path = out / name
        if not path.is_file() or path.stat().st_size != record.bytes:
            logging.getLogger("dinov2").warning("%s is missing or has another size than was packed: packed anew", path)
            del manifest.shards[name]


def _read(dataset: TileDataset, plan: PackPlan, shards: Sequence[int], workers: int) -> Iterator[PackedTile]:
    """The tiles of some shards, in order."""
    loader: DataLoader[PackedTile] = DataLoader(
        TileReader(dataset, plan.encoding, plan.quality),  # type: ignore[arg-type]
        sampler=chain.from_iterable(map(plan.tiles_of, shards)),
        batch_size=READ_TOGETHER,
        num_workers=workers,
        collate_fn=keep_list,
        worker_init_fn=init_worker,
        generator=torch.Generator(),
    )
    for tiles in loader:
        yield from tiles


def _write_shard(
    plan: PackPlan, number: int, tiles: Iterator[PackedTile], out: Path, monitor: BadTileMonitor, bar: tqdm
) -> ShardRecord:
    path = out / plan.shard_name(number)
    bad: list[tuple[str, str]] = []
    count = 0
    with replacing(path) as temporary:
        with SHARD_WRITERS[plan.format](temporary, len(plan.tiles_of(number))) as shard:
            for tile in tiles:
                failure = [(tile.path, tile.reason)] if tile.data is None else []
                monitor.update(failure, 1)
                bad += failure
                if tile.data is not None:
                    shard.add(tile)
                    count += 1
                bar.update()
        checksum, size = file_sha256(temporary), temporary.stat().st_size
    return ShardRecord(checksum, size, count, bad)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dinov2.data.pack",
        description="Write any data set into tar shards or HDF5 files, with a checksum of each.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", nargs="?", metavar="SPEC", help="a data set's string, such as Folder:root=TILES")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the shards and the manifest")
    parser.add_argument("--format", choices=list(SHARD_WRITERS), default="tar", help="default: tar")
    parser.add_argument(
        "--shard-size",
        type=int,
        default=10_000,
        metavar="N",
        help="tiles a shard; default: 10000; an h5 shard is made in memory, 2 GB for 10,000 tiles of 256 px",
    )
    parser.add_argument(
        "--jpeg-quality", type=int, metavar="Q", help="encode as JPEG anew (default: files as they are, others as PNG)"
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read; default: 0, this one")
    parser.add_argument(
        "--max-bad-fraction", type=float, default=0.01, metavar="F", help="more bad tiles stop it; default: 0.01"
    )
    parser.add_argument("--verify", action="store_true", help="check DIR's shards against its manifest, write nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
