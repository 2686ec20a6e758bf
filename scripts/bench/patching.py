"""Slides to coordinates and to pixels: `eval.patching` against plain loops, on real slides and a generated pyramid.

Slides a second for segmentation and coordinates, patches a second for pixels, in one process and on all cores; memory
over many slides, with pixels too; time against size. Results are compared before they are timed.
"""

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from common import Options, WrongResultError, make_parser, parse, run
from pyramid import SVS, level_factors, make_pyramid
from report import Report
from slide_peers import loop_coordinates, loop_pixels
from timing import interleave

from dinov2.slides import open_slide
from dinov2.slides.coordinates import geometry_at_level, read_patch, reading_order
from dinov2.utils.errors import UserError
from eval.patching.grid import tissue_grid
from eval.patching.options import PatchOptions, SlideTask
from eval.patching.outputs import remove_outputs
from eval.patching.pool import Finished, run_tasks
from eval.patching.presets import load_preset
from eval.patching.process import process_slide
from eval.patching.segmentation import segment

EXAMPLES = """\
  python scripts/bench/patching.py --json patching.json
  python scripts/bench/patching.py --slides a.svs b.ndpi --size 40000
"""
PRESET = load_preset("biopsy")
ROOT = Path(__file__).resolve().parents[2]


def our_coordinates(path: Path, side: int) -> np.ndarray:
    """Segment and lay the grid; (N, 2)."""
    with open_slide(path) as slide:
        tissue = segment(slide, PRESET)
        geometry = geometry_at_level(slide, 0, side, 0.5)
        return tissue_grid(tissue.contours, tissue.holes, slide.level_dimensions[0], geometry, PRESET.contour_fn, True)


def our_pixels(path: Path, coords: np.ndarray, side: int) -> int:
    """Read all patches in the slide's order; return their number."""
    with open_slide(path) as slide:
        geometry = geometry_at_level(slide, 0, side, 0.5)
        for index in reading_order(coords, slide.tile_size, geometry.level_downsample):
            read_patch(slide, geometry, *coords[index])
    return len(coords)


def check(path: Path, side: int) -> np.ndarray:
    """Return the coordinates, which must be the loop's, and whose pixels must be OpenSlide's."""
    ours, loop = our_coordinates(path, side), loop_coordinates(path, PRESET, side)
    if not np.array_equal(ours, loop):
        raise WrongResultError(f"{path}: {len(ours)} patches of ours and {len(loop)} of the loop differ")
    return ours


def measure_slide(path: Path, side: int, most: int, options: Options, report: Report) -> None:
    """Time both ways on one slide in this process."""
    coords = check(path, side)
    some = coords[np.linspace(0, len(coords) - 1, min(most, len(coords))).astype(int)]
    calls: dict[str, Callable[[], object]] = {
        "coordinates: ours": partial(our_coordinates, path, side),
        "coordinates: loop": partial(loop_coordinates, path, PRESET, side),
        "pixels: ours": partial(our_pixels, path, some, side),
        "pixels: loop": partial(loop_pixels, path, some, side),
    }
    times = interleave(calls, options.device, options.repeats, options.seconds)
    for name, timing in times.items():
        kind = name.partition(":")[0]
        rate = {
            "slides_s": 1 / timing.minimum,
            "patches_s": len(coords if kind == "coordinates" else some) / timing.minimum,
        }
        report.rows.append({"slide": path.name, "what": name, "processes": 1, **timing.columns, **rate})
    for kind in ("coordinates", "pixels"):
        ratio = times[f"{kind}: loop"].minimum / times[f"{kind}: ours"].minimum
        report.ratios[f"{path.name}: {kind}, ours over the loop"] = ratio
    report.save()


def measure_pool(path: Path, side: int, most: int, options: Options, report: Report) -> None:
    """Time both ways in a pool of a process a core, which has been started and has imported everything."""
    coords = our_coordinates(path, side)[:most]
    tasks = [path] * (2 * options.threads)
    with multiprocessing.get_context("spawn").Pool(options.threads) as pool:
        work: dict[str, Callable[[Path], object]] = {
            "coordinates: ours": partial(our_coordinates, side=side),
            "coordinates: loop": partial(loop_coordinates, preset=PRESET, side=side),
            "pixels: ours": partial(our_pixels, coords=coords, side=side),
            "pixels: loop": partial(loop_pixels, coords=coords, side=side),
        }
        calls = {name: partial(pool.map, call, tasks, chunksize=1) for name, call in work.items()}
        times = interleave(calls, options.device, options.repeats, options.seconds)
    for name, timing in times.items():
        rate = {"slides_s": len(tasks) / timing.minimum, "processes": options.threads}
        report.rows.append({"slide": path.name, "what": f"{name}, all cores", **timing.columns, **rate})
    for kind in ("coordinates", "pixels"):
        ratio = times[f"{kind}: loop"].minimum / times[f"{kind}: ours"].minimum
        report.ratios[f"{path.name}: {kind} on all cores, ours over the loop"] = ratio
    report.save()


def measure_processes(path: Path, side: int, count: int, options: Options, report: Report) -> None:
    """Time the command, files written, on a slide under `count` names: in one process and on all cores."""
    rates: dict[tuple[str, int], float] = {}
    for processes in dict.fromkeys((1, options.threads)):
        for what, more in (("command", []), ("command, pixels in h5", ["--pixels", "h5"])):
            with tempfile.TemporaryDirectory() as folder:
                for number in range(count):
                    (Path(folder) / f"{number}{path.suffix}").symlink_to(path.resolve())
                command = [
                    sys.executable,
                    "-m",
                    "eval.patches",
                    "--slides",
                    folder,
                    "--out",
                    f"{folder}/out",
                    "--quiet",
                ]
                command += ["--mpp", "0.5", "--patch-size", str(side), "--workers", str(processes), *more]
                begin = time.perf_counter()
                done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
                seconds = time.perf_counter() - begin
                if done.returncode:
                    raise WrongResultError(done.stderr)
                totals = json.loads((Path(folder) / "out" / "patches_summary.json").read_text())["totals"]
            rates[what, processes] = count / seconds
            rate = {"slides_s": count / seconds, "patches_s": totals["patches"] / seconds}
            report.rows.append({"slide": path.name, "what": what, "processes": processes, **rate})
    for (what, processes), slides_s in rates.items():
        if processes > 1:
            report.ratios[f"{path.name}: {what}, {processes} processes over 1"] = slides_s / rates[what, 1]
    report.save()


def _grow(job: PatchOptions, path: Path, count: int, task: int, progress: Callable[[int], None]) -> list[float]:
    """Patch a slide `count` times in one process; resident memory in MiB after each."""
    sizes = []
    for number in range(count):
        process_slide(job, SlideTask(f"{number}", path, PRESET, 0.5), progress)
        remove_outputs(job, f"{number}")  # pixels of many slides would fill the disk
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        sizes.append(pages * resource.getpagesize() / 2**20)
    return sizes


def measure_memory(path: Path, side: int, count: int, pixels: tuple[str, ...], report: Report) -> None:
    """Memory of a worker after a tenth of `count` slides and after all: how much it has grown."""
    with tempfile.TemporaryDirectory() as folder:
        job = PatchOptions(Path(folder), patch_size=side, pixels=pixels)
        *_, event = run_tasks(partial(_grow, job, path, count), [0], 1)
    if not isinstance(event, Finished):
        raise WrongResultError(str(event))
    early, late = event.result[max(count // 10 - 1, 0)], event.result[-1]
    what = f" with pixels in {' and '.join(pixels)}" if pixels else ""
    report.rows.append({"slide": path.name, "what": f"MiB after {max(count // 10, 1)} slides{what}", "mib": early})
    report.rows.append({"slide": path.name, "what": f"MiB after {count} slides{what}", "mib": late})
    report.ratios[f"memory after {max(count // 10, 1)} slides over that after {count}{what}"] = early / late
    report.save()


def measure_growth(pyramids: Sequence[Path], side: int, options: Options, report: Report) -> None:
    """Time for twice the pixels over that for once; 2 is linear."""
    calls: dict[str, Callable[[], object]] = {p.name: partial(our_coordinates, p, side) for p in pyramids}
    coords = {path.name: our_coordinates(path, side) for path in pyramids}
    calls |= {f"{p.name} pixels": partial(our_pixels, p, coords[p.name], side) for p in pyramids}
    times = interleave(calls, options.device, options.repeats, options.seconds)
    for suffix, what in (("", "coordinates"), (" pixels", "all pixels")):
        small, large = (times[path.name + suffix].minimum for path in pyramids)
        for path, seconds in zip(pyramids, (small, large), strict=True):
            report.rows.append({"slide": path.name, "what": f"growth: {what}", "processes": 1, "min_ms": 1e3 * seconds})
        report.ratios[f"growth: {what}, 2.2 over the time for twice the pixels"] = 2.2 / (large / small)
    report.save()


def program(argv: Sequence[str] | None) -> None:
    """Measure what the command line asks for, and print and write the results."""
    parser = make_parser(__doc__ or "", EXAMPLES)
    slides = [SVS, *sorted((ROOT.parent / "shared" / "data" / "slides").glob("tcga*.svs"))]
    parser.add_argument("--slides", type=Path, nargs="+", default=slides, help="default: the slides there are here")
    parser.add_argument("--size", type=int, default=20_000, help="px of the generated pyramid; default: 20000")
    parser.add_argument("--patch", type=int, default=256, help="px; default: 256")
    parser.add_argument("--most", type=int, default=1000, help="patches at most whose pixels are timed; default: 1000")
    parser.add_argument("--copies", type=int, default=16, help="slides of the job on all cores; default: 16")
    parser.add_argument("--memory-slides", type=int, default=200, help="default: 200")
    parser.add_argument("--work", type=Path, help="folder that keeps the pyramids; default: a temporary one")
    quick = {"size": 3000, "most": 10, "copies": 2, "memory_slides": 2, "patch": 128}
    args, options = parse(parser, argv, quick)
    for path in args.slides:
        if not path.is_file():
            raise UserError(f"--slides {path}: no such file")
    report = Report(options)
    for folder in _work_folder(args.work):
        large = make_pyramid(folder / f"pyramid-{args.size}.tif", args.size)
        half = int(args.size / np.sqrt(2))
        factors = level_factors(args.size)
        small = make_pyramid(folder / f"pyramid-{half}-to-{factors[-1]}.tif", half, factors=factors)
        for path in (*args.slides, large):
            measure_slide(path, args.patch, args.most, options, report)
        measure_pool(args.slides[0], args.patch, args.most, options, report)
        measure_processes(args.slides[0], args.patch, args.copies, options, report)
        measure_growth((small, large), args.patch, options, report)
        measure_memory(args.slides[0], args.patch, args.memory_slides, (), report)
        measure_memory(large, args.patch, max(args.memory_slides // 20, 2), ("h5",), report)
    report.show()


def _work_folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        os.makedirs(given, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


if __name__ == "__main__":
    sys.exit(run(program))
