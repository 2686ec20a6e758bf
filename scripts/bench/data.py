"""Images a second and core of the input pipeline, from JPEG files to a batch of crops, against what others use.

Each row takes the same tiles from disk to stacked crops in one thread. `ours, worker` counts everything: decoding, all
crops, masks, collation. `ours, device (worker's share)` is what a loader process does when the device makes the crops:
decoding, parameters, masks, packing; `ours, device (device's share)` is the rest, on --device, with the copy to it.
`ours, loader, N workers` is the whole loader of training from end to end, its crops made where --device makes them.
Reading is from the page cache, which the warm-up fills. lightly-train is a peer under the AGPL: it stays in an
environment of its own (`python -m venv FOLDER && FOLDER/bin/pip install lightly-train`), named by --lightly.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import Options, WrongResultError, make_parser, parse, run
from data_peers import Crops, dinov2_composition, torchvision_v2
from peer_steps import PeerSteps
from PIL import Image
from report import Report
from timing import Timing, interleave

from dinov2.data.collate import MultiCropBatch, MultiCropCollator, TileBatch
from dinov2.data.datasets import make_dataset
from dinov2.data.device_augmentation import DeviceAugmentation
from dinov2.data.loaders import make_loader
from dinov2.data.samples import SampleStream
from dinov2.utils.errors import UserError
from dinov2.utils.schema import CropsSection, IbotSection

EXAMPLES = """\
  python scripts/bench/data.py --tiles TILES --threads 1 --json data.json
  python scripts/bench/data.py --tiles TILES --threads 1 --batch 8 --global-size 224 --local-size 96
  python scripts/bench/data.py --tiles TILES --device cuda --batch 64 --workers 16 --json data_gpu.json
  python scripts/bench/data.py --tiles TILES --threads 1 --lightly FOLDER/bin/python
"""
PATCH = 16
DINOV2, V2, LIGHTLY = "DINOv2 (PIL)", "torchvision v2 (tensors)", "lightly-train"
WORKER, SHARE, DEVICE = "ours, worker", "ours, device (worker's share)", "ours, device (device's share)"


def program(argv: Sequence[str] | None) -> None:
    """Measure the pipelines, and print and write the results."""
    parser = make_parser(__doc__ or "", EXAMPLES)
    parser.add_argument(
        "--tiles", metavar="FOLDER", help="JPEG tiles, at any depth; without, --quick makes random ones"
    )
    parser.add_argument("--batch", type=int, default=16, help="tiles a call; default: 16")
    parser.add_argument("--global-size", type=int, default=256, dest="size", help="of two crops, px; default: 256")
    parser.add_argument("--local-size", type=int, default=112, help="of the local crops, px; default: 112")
    parser.add_argument("--local-crops", type=int, default=8, help="their number; default: 8")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--workers", type=int, default=cores, help=f"of the loader, 0 without; default: cores ({cores})"
    )
    parser.add_argument("--lightly", type=Path, metavar="PYTHON", help="compare with the lightly-train of this Python")
    args, options = parse(parser, argv, {"batch": 2, "size": 32, "local_size": 16, "local_crops": 2, "workers": 1})
    if args.size % PATCH or args.local_size < 8 or args.local_crops < 0 or args.workers < 0:
        raise UserError(
            f"--global-size {args.size} --local-size {args.local_size} --local-crops {args.local_crops} --workers "
            f"{args.workers}: the first must be a multiple of {PATCH}, the second at least 8, the others not negative"
        )
    crops = CropsSection(
        global_crops_size=args.size, local_crops_size=args.local_size, local_crops_number=args.local_crops
    )
    report = Report(options)
    if options.threads > 1:
        report.note(f"{options.threads} threads: give --threads 1 to compare what one core does")
    with tempfile.TemporaryDirectory() as folder:
        if args.tiles is None:
            if not args.quick:
                raise UserError("--tiles is missing: name a folder of JPEG tiles, such as scripts/sample_data.py makes")
            _write_random_tiles(Path(folder), args.batch)
        tiles = args.tiles or folder
        measure(tiles, crops, args.batch, args.lightly, options, report)
        if args.workers:
            measure_loader(tiles, crops, args.batch, args.workers, options, report)
    report.show()


def measure(tiles: str, crops: CropsSection, batch: int, python: Path | None, options: Options, report: Report) -> None:
    """Time everyone in turn on the same tiles; add rows and ratios to the report.

    Raises:
        UserError: the folder holds too few tiles, or `python` has no lightly-train.
        WrongResultError: a contender's crops have the wrong shape, or are not finite.
    """
    dataset = make_dataset(f"Folder:root={tiles}")
    if len(dataset) < batch:
        raise UserError(f"--tiles {tiles} holds {len(dataset)} tiles; --batch {batch} needs as many")
    stream, ibot = SampleStream(dataset, crops, 0), IbotSection()
    side = crops.global_crops_size // PATCH
    masks = ((side, side), ibot.mask_sample_probability, ibot.mask_ratio_min_max)
    by_worker, by_device = (MultiCropCollator(crops, 0, batch, *masks, on_device=on) for on in (False, True))
    positions = range(batch)
    paths = [dataset.path(stream.order.index_at(position)) for position in positions]
    packed = by_device([stream[position] for position in positions])
    assert isinstance(packed, TileBatch)
    augmentation = DeviceAugmentation(crops, options.device)
    packed = packed.pin_memory() if options.device.type == "cuda" else packed

    def worker() -> Crops:
        made = by_worker([stream[position] for position in positions])
        assert isinstance(made, MultiCropBatch)
        return made.global_crops, made.local_crops

    def device() -> Crops:
        made = packed.render(augmentation)
        return made.global_crops, made.local_crops

    peers = {DINOV2: dinov2_composition(crops), V2: torchvision_v2(crops)}
    rendering: dict[str, Callable[[], Crops]] = {name: partial(peer, paths) for name, peer in peers.items()}
    rendering |= {WORKER: worker, DEVICE: device}
    for name, call in rendering.items():
        _check(name, call(), crops, batch)
    cpu = torch.device("cpu")
    share = {SHARE: lambda: by_device([stream[position] for position in positions])}
    on_cpu: dict[str, Callable[[], object]] = {name: call for name, call in rendering.items() if name != DEVICE}
    with ExitStack() as stack:
        if python is None:
            report.note("lightly-train was not measured: name its environment with --lightly")
        else:
            on_cpu[LIGHTLY] = stack.enter_context(_lightly(python, paths, crops, options)).step
        timings = interleave({**on_cpu, **share}, cpu, options.repeats, options.seconds)
    timings |= interleave({DEVICE: device}, options.device, options.repeats, options.seconds)
    _add(timings, [*peers, *([LIGHTLY] if python else [])], batch, report)


def measure_loader(tiles: str, crops: CropsSection, batch: int, workers: int, options: Options, report: Report) -> None:
    """Add the rate of the training loader, taken over batches in a row once its queue is in its usual state."""
    loader = make_loader(
        make_dataset(f"Folder:root={tiles}"),
        crops,
        IbotSection(),
        patch_size=PATCH,
        global_batch_size=batch,
        seed=0,
        num_workers=workers,
        pin_memory=options.device.type == "cuda",
        device=options.device,
    )
    batches = iter(loader)
    for _ in range(3 * workers):  # more than are made in advance
        next(batches)
    count = options.repeats * workers
    began = time.perf_counter()
    for _ in range(count):
        made = next(batches)
    float(made.global_crops[0, 0, 0, 0])  # waits for the device
    rate = count * batch / (time.perf_counter() - began)
    report.rows.append({"name": f"ours, loader, {workers} workers", "images_per_s": rate, "samples": count})
    report.save()


def _lightly(python: Path, paths: list[str], crops: CropsSection, options: Options) -> PeerSteps:
    case = {
        "paths": paths,
        "threads": options.threads,
        "global_size": crops.global_crops_size,
        "local_size": crops.local_crops_size,
        "local_crops": crops.local_crops_number,
        "mean": crops.normalize.mean,
        "std": crops.normalize.std,
    }
    return PeerSteps(python, Path(__file__).with_name("lightly_data_peer.py"), case)


def _add(timings: dict[str, Timing], peers: list[str], batch: int, report: Report) -> None:
    for name, timing in timings.items():
        report.rows.append({"name": name, "images_per_s": batch / timing.minimum, **_per_image(timing, batch)})
    for ours in (WORKER, SHARE):
        for peer in peers:
            report.ratios[f"{ours} over {peer}"] = timings[peer].minimum / timings[ours].minimum
    report.save()


def _per_image(timing: Timing, batch: int) -> dict[str, float | int]:
    return {
        "min_ms_per_image": 1e3 * timing.minimum / batch,
        "median_ms_per_image": 1e3 * timing.median / batch,
        "samples": len(timing.samples),
    }


def _check(name: str, made: Crops, crops: CropsSection, batch: int) -> None:
    large, small = crops.global_crops_size, crops.local_crops_size
    wanted = [(2 * batch, 3, large, large), (crops.local_crops_number * batch, 3, small, small)]
    shapes = [tuple(part.shape) for part in made]
    if shapes != wanted or not all(bool(torch.isfinite(part).all()) for part in made):
        raise WrongResultError(f"{name}: crops of shapes {shapes}, finite, should be {wanted}")


def _write_random_tiles(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")


if __name__ == "__main__":
    sys.exit(run(program))
