"""End-to-end embedding of a slide against the encoder alone: patches a second, reading and writing included.

The encoder alone is a bare forward pass of the network on batches that are ready for it, on its device; where the
encoder is no network, its `embed`. In between, `embed` on pixels in memory adds the transform. At least 0.9 of the
bare rate is the aim: reading must keep up with the network, and leave it the cores. The program's own start is not
measured; a slide's (opening it, asking for its state, the first batch) is.
"""

import itertools
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import WrongResultError, make_parser, parse, run
from pyramid import make_pyramid
from report import Report
from timing import interleave

from dinov2.slides import Coordinates, open_slide, write_coordinates
from dinov2.slides.coordinates import geometry_at_level
from eval.embedding.loader import default_workers
from eval.embedding.options import EmbedOptions, SlideToEmbed
from eval.embedding.run import embed_slides
from eval.embedding.sources import PatchSource, slide_source
from eval.embedding.work import autocast
from eval.encoders import ColorStats, Encoder, make_encoder
from eval.patching.pool import Finished, run_tasks
from eval.torch_encoder import TorchEncoder

EXAMPLES = """\
  python scripts/bench/embed.py --json embed.json
  python scripts/bench/embed.py --device cuda --dtype bf16 --encoder random:mvhybrid --patches 20000 --batch 256
"""


def grid(count: int, size: int, side: int) -> np.ndarray:
    """Return `count` patches (N, 2) of the tissue in the middle of a pyramid, row by row, again from the first."""
    places = range(size // 10, size - size // 10 - side, side)
    corners = [(x, y) for y in places for x in places]
    return np.array(list(itertools.islice(itertools.cycle(corners), count)), dtype=np.int64)


def forward(encoder: TorchEncoder, batch: torch.Tensor, count: int, device: str, precision: str) -> None:
    """Pass `count` prepared patches (B, 3, S, S), the same batch again and again, through the network."""
    with torch.inference_mode(), autocast(device, precision):
        for start in range(0, count, len(batch)):
            encoder.tokens(encoder.model, batch[: min(len(batch), count - start)])
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def embed(encoder: Encoder, images: np.ndarray, count: int, device: str, precision: str) -> None:
    """Embed `count` patches, the same batch again and again."""
    with autocast(device, precision):
        for start in range(0, count, len(images)):
            encoder.embed(images[: min(len(images), count - start)])


def end_to_end(encoder: Encoder, slide: Path, coordinates: Path, options: EmbedOptions) -> None:
    """Read, embed and write one slide, anew each time."""
    with tempfile.TemporaryDirectory() as folder:
        job = EmbedOptions(**{**vars(options), "out": Path(folder)})
        source = SlideToEmbed("slide", slide, partial(slide_source, "slide", slide, coordinates))
        (state,) = embed_slides(encoder, [source], job, progress=False)
        if state.status != "done":
            raise WrongResultError(state.reason)


def _grow(slide: Path, coordinates: Path, count: int, task: int, progress: Callable[[int], None]) -> list[float]:
    """Embed a slide under `count` names in one job; resident memory in MiB when each is opened."""
    sizes: list[float] = []

    def opened(name: str) -> PatchSource:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        sizes.append(pages * resource.getpagesize() / 2**20)
        return slide_source(name, slide, coordinates)

    with tempfile.TemporaryDirectory() as folder:
        slides = [SlideToEmbed(name, slide, partial(opened, name)) for name in map(str, range(count))]
        embed_slides(ColorStats(), slides, EmbedOptions(Path(folder)), progress=False)
    return sizes


def measure_memory(slide: Path, coordinates: Path, count: int, report: Report) -> None:
    """Memory of a job at a tenth of `count` slides and at the last: how much it has grown."""
    *_, event = run_tasks(partial(_grow, slide, coordinates, count), [0], 1)
    if not isinstance(event, Finished):
        raise WrongResultError(str(event))
    tenth = max(count // 10, 1)
    early, late = event.result[tenth], event.result[-1]
    report.rows.append({"encoder": "color-stats", "what": f"MiB at slide {tenth}", "mib": early})
    report.rows.append({"encoder": "color-stats", "what": f"MiB at slide {count}", "mib": late})
    report.ratios[f"memory at slide {tenth} over that at {count}"] = early / late


def program(argv: Sequence[str] | None) -> None:
    """Measure what the command line asks for, and print and write the results."""
    parser = make_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--encoder", default="random:mvhybrid_tiny", help="default: random:mvhybrid_tiny")
    parser.add_argument("--patches", type=int, default=512, help="default: 512")
    parser.add_argument("--batch", type=int, default=64, help="patches a forward pass; default: 64")
    parser.add_argument("--size", type=int, default=8000, help="px of the generated slide; default: 8000")
    parser.add_argument("--workers", type=int, help="reading processes; default: as the command's")
    parser.add_argument("--memory-slides", type=int, default=50, help="default: 50; 0 leaves memory out")
    args, options = parse(parser, argv, {"patches": 4, "batch": 2, "size": 1500, "memory_slides": 2})
    precision = "bf16" if options.dtype == torch.bfloat16 else "fp32"
    workers = default_workers(args.device) if args.workers is None else args.workers
    encoder = make_encoder(args.encoder, device=args.device)
    report = Report(options)
    with tempfile.TemporaryDirectory() as folder:
        path = make_pyramid(Path(folder) / "slide.tif", args.size)
        with open_slide(path) as slide:
            geometry = geometry_at_level(slide, 0, 256, 0.5)
            coords = grid(args.patches, args.size, 256)
            write_coordinates(
                Path(folder) / "slide.h5", Coordinates("slide", slide.level_dimensions[0], coords, geometry), slide
            )
            images = np.stack([slide.read_region((int(x), int(y)), 0, (256, 256)) for x, y in coords[: args.batch]])
        job = EmbedOptions(Path(folder), args.batch, precision, ("h5", "pt"), workers, args.device)
        calls: dict[str, Callable[[], object]] = {}
        if isinstance(encoder, TorchEncoder):
            batch = encoder.transform(torch.from_numpy(images).to(args.device))
            calls["forward pass"] = partial(forward, encoder, batch, args.patches, args.device, precision)
        calls["embed"] = partial(embed, encoder, images, args.patches, args.device, precision)
        calls["end to end"] = partial(end_to_end, encoder, path, Path(folder) / "slide.h5", job)
        # All are timed by the wall clock: every batch comes back to the CPU.
        times = interleave(calls, torch.device("cpu"), options.repeats, options.seconds)
        if args.memory_slides > 1:
            measure_memory(path, Path(folder) / "slide.h5", args.memory_slides, report)
    for name, timing in times.items():
        rate = args.patches / timing.minimum
        row = {"encoder": args.encoder, "what": name, "patches_s": rate, "workers": workers}
        report.rows.append({**row, **timing.columns})
    for name in [name for name in calls if name != "end to end"]:
        report.ratios[f"end to end over {name}"] = times[name].minimum / times["end to end"].minimum
    report.save()
    report.show()


if __name__ == "__main__":
    sys.exit(run(program))
