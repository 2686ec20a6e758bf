"""Data sets: start-up time and memory of listings of millions of tiles, and images decoded a second on one core.

Listings are synthetic: real folders, but names of files that do not exist. Ours is opened from the kept listing; the
peer reads a text file of paths into a Python list and draws a permutation, in memory, for the order.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from common import Options, WrongResultError, make_parser, parse, run
from PIL import Image
from report import Report
from timing import interleave
from torchvision.io import ImageReadMode, decode_jpeg, decode_png

from dinov2.data.datasets import Folder
from dinov2.data.datasets.base import IMAGE_SUFFIXES
from dinov2.data.datasets.decode import decode_bytes
from dinov2.data.datasets.file_listing import listing_table
from dinov2.data.errors import DatasetError
from dinov2.data.index_cache import Watched, kept_or_listed
from dinov2.data.index_table import IndexTable

EXAMPLES = """\
  python scripts/bench/data_index.py --tiles TILES --json data_index.json
  python scripts/bench/data_index.py --paths 1000000                        # one listing, decoding of a noise tile
"""
FOLDER_TILES = 1000  # tiles in one folder of a synthetic listing
WORKER = Path(__file__).with_name("index_worker.py")


def make_listing(folder: Path, count: int) -> tuple[Path, Path]:
    """Keep a synthetic listing in `DINOV2_CACHE_DIR`; returns its root and a text file of the paths."""
    root, text = folder / f"tiles{count}", folder / f"tiles{count}.txt"
    names = [f"TCGA-AA-{number:06d}" for number in range(-(-count // FOLDER_TILES))]
    watched = Watched()
    for name in ["", *names]:
        (root / name).mkdir(parents=True)
    for name in ["", *names]:
        os.utime(root / name, (time.time() - 60,) * 2)
        watched.add(str(root / name))

    def files() -> Iterator[tuple[str, str]]:
        with open(text, "w") as file:
            for number in range(count):
                place = names[number // FOLDER_TILES], f"tile_{number % FOLDER_TILES * 256}_{number}.jpg"
                file.write(f"{root}/{place[0]}/{place[1]}\n")
                yield place

    def make() -> IndexTable:
        return listing_table("Folder", str(root), files(), watched)

    kept_or_listed("Folder", (str(root), *IMAGE_SUFFIXES), "always", lambda table: len(table.columns["folder"]), make)
    return root, text


def measure_listing(count: int, lookups: int, options: Options, report: Report) -> None:
    """Add a row for each way to open a listing of `count` tiles: the fastest of the repeats, the largest memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DINOV2_CACHE_DIR"] = str(folder / "cache")
        root, text = make_listing(folder, count)
        ours, peer = (_worker(kind, path, lookups, options) for kind, path in (("ours", root), ("list", text)))
    for kind, row in (("ours", ours), ("list of paths", peer)):
        report.rows.append({"what": "listing", "name": kind, "tiles": count, **row})
    report.ratios[f"{count:,} tiles: start-up, ours over a list"] = peer["start_s"] / ours["start_s"]
    ratio = peer["worker_private_mib"] / ours["worker_private_mib"]
    report.ratios[f"{count:,} tiles: private memory of a worker, ours over a list"] = ratio


def measure_loader(spec: str, tiles: int, options: Options, report: Report) -> None:
    """Add a row of a loader's worker that has read so many tiles of a data set: the largest memory of the repeats."""
    row = _worker("loader", spec, tiles, options)
    report.rows.append({"what": "loader worker", "name": spec.partition(":")[0], **row})


def _worker(kind: str, source: Path | str, lookups: int, options: Options) -> dict[str, float]:
    command = [sys.executable, str(WORKER), kind, str(source), str(lookups)]
    results = []
    for _ in range(min(options.repeats, 3)):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise WrongResultError(f"{kind}: {done.stderr.strip()[-500:]}")
        results.append(json.loads(done.stdout))
    fastest = ("start_s", "path_us")
    return {key: (min if key in fastest else max)(result[key] for result in results) for key in results[0]}


def measure_decoding(tiles: list[Image.Image], options: Options, report: Report) -> None:
    """Add rows of images a second for JPEG (quality 90) and PNG: ours, Pillow's and torchvision's decoders."""
    for kind, suffix, peer in (("JPEG", {"quality": 90}, decode_jpeg), ("PNG", {}, decode_png)):
        files = [_encode(tile, kind, suffix) for tile in tiles]
        decoders: dict[str, Callable[[bytes], torch.Tensor]] = {
            "ours": lambda data: decode_bytes(data, ""),
            "Pillow": _by_pillow,
            "torchvision": lambda data, peer=peer: _by_torchvision(peer, data),  # type: ignore[misc]
        }
        for name, decoder in decoders.items():
            if not torch.equal(decoder(files[0]), _by_pillow(files[0])):
                raise WrongResultError(f"{kind}: {name} gives other pixels than Pillow")
        calls = {name: _all(decoder, files) for name, decoder in decoders.items()}
        timings = interleave(calls, options.device, options.repeats, options.seconds)
        for name, timing in timings.items():
            rate = len(files) / timing.minimum
            report.rows.append({"what": f"decode {kind}", "name": name, "images_per_s": rate, **timing.columns})
        for name in ("Pillow", "torchvision"):
            ratio = timings[name].minimum / timings["ours"].minimum
            report.ratios[f"decode {kind}: images/s, ours over {name}"] = ratio


def _all(decoder: Callable[[bytes], torch.Tensor], files: Sequence[bytes]) -> Callable[[], None]:
    def call() -> None:
        for data in files:
            decoder(data)

    return call


def _encode(tile: Image.Image, kind: str, options: dict[str, int]) -> bytes:
    buffer = io.BytesIO()
    tile.save(buffer, kind, **options)
    return buffer.getvalue()


def _by_pillow(data: bytes) -> torch.Tensor:
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _by_torchvision(decoder: Callable[..., torch.Tensor], data: bytes) -> torch.Tensor:
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return decoder(encoded, mode=ImageReadMode.RGB).contiguous()


def _tiles(root: str | None, count: int) -> list[Image.Image]:
    """Tiles spread over a folder, or one of smooth noise."""
    if root is None:
        noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
        return [Image.fromarray(noise).resize((256, 256), Image.Resampling.BICUBIC)]
    dataset = Folder(root)
    places = range(0, len(dataset), max(1, len(dataset) // count))
    return [Image.fromarray(dataset.decode(place).permute(1, 2, 0).numpy()) for place in places[:count]]


def program(argv: Sequence[str] | None) -> None:
    """Measure what the command line asks for, and print and write the results."""
    parser = make_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--tiles", metavar="DIR", help="tiles to decode; default: one of smooth noise")
    parser.add_argument("--count", type=int, default=100, help="of tiles to decode; default: 100")
    sizes = [1_000_000, 10_000_000]
    parser.add_argument("--paths", type=int, nargs="*", default=sizes, help="sizes of listings; default: 1, 10 million")
    parser.add_argument("--lookups", type=int, default=100_000, help="paths to ask for; default: 100000")
    parser.add_argument("--loader", nargs="*", default=[], metavar="SPEC", help="measure a loader's worker on these")
    parser.add_argument("--read", type=int, default=2000, help="tiles that it reads; default: 2000")
    args, options = parse(parser, argv, {"paths": [20_000], "lookups": 100, "count": 2, "read": 16})
    if min([args.count, args.lookups, args.read, *args.paths]) < 1:
        raise DatasetError("--count, --lookups, --read and --paths must be positive")
    report = Report(options)
    measure_decoding(_tiles(args.tiles, args.count), options, report)
    report.save()
    for count in args.paths:
        if not options.late:
            measure_listing(count, args.lookups, options, report)
            report.save()
    for spec in args.loader:
        if not options.late:
            measure_loader(spec, args.read, options, report)
            report.save()
    report.note("worker_private_mib is what no other process shares; worker_resident_mib has the libraries, too")
    report.show()


if __name__ == "__main__":
    sys.exit(run(program))
