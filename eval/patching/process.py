"""One slide, from the file to its coordinates: the work of one worker process."""

import glob
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dinov2.slides.coordinates import (
    Coordinates,
    Geometry,
    geometry_at_level,
    geometry_at_mpp,
    read_patch,
    reading_order,
)
from dinov2.slides.coordinates_file import coordinate_attributes
from dinov2.slides.errors import SlideError
from dinov2.slides.integrity import check_whole
from dinov2.slides.magnification import level0_mpp
from dinov2.slides.open import open_slide
from dinov2.slides.reader import SlideReader
from dinov2.utils.errors import UserError
from dinov2.utils.files import replacing
from eval.patching.geojson import write_geojson
from eval.patching.grid import tissue_grid
from eval.patching.local_copy import local_copy
from eval.patching.options import JOB, PatchOptions, SlideTask
from eval.patching.overview import draw_overview, write_overview
from eval.patching.pixels import H5Sink, PixelSink, folder_sink, is_blank, remove_partial, tar_sink
from eval.patching.segmentation import Tissue, segment
from eval.patching.state import SlideState, fingerprint, job_key, read_state, state_path, write_state

_REPORT_EVERY = 64  # patches
_TRACE = "traceback"


def process_slide(options: PatchOptions, task: SlideTask, progress: Callable[[int], None]) -> SlideState:
    """Bring one slide's files up to date and return its state; nothing is done where they are.

    Whatever goes wrong with the slide becomes a `failed` state; `progress` is told how many patches' pixels were
    written.

    Raises:
        OSError: the state itself cannot be written.
    """
    path = state_path(options.out, JOB, task.name)
    before = read_state(path)
    try:
        content = fingerprint(task.path)
    except OSError as error:
        content = f"unreadable: {error}"
    settings = task_settings(options, task)
    key = job_key(settings, content)
    same = before if before is not None and before.key == key else None
    if same is not None and same.final and _complete(options, same):
        return same
    attempts = 1 if same is None else same.attempts + 1
    state = SlideState(task.name, str(task.path), key, "running", attempts=attempts, settings=job_key(settings))
    write_state(path, state)
    _remove_outputs(options, task.name)  # those of other settings must not pass for these
    started = time.perf_counter()
    try:
        state = _process(options, task, state, progress)
    except UserError as error:
        state = replace(state, status="failed", reason=str(error))
    except Exception as error:  # one slide's surprise must not end the others
        reason = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        state = replace(state, status="failed", reason=reason, details={_TRACE: traceback.format_exc()})
    state = replace(state, seconds=round(time.perf_counter() - started, 3))
    write_state(path, state)
    return state


def task_settings(options: PatchOptions, task: SlideTask) -> dict[str, Any]:
    """Return what decides a slide's outcome, besides its content."""
    return {**options.settings(), **asdict(task.preset), "mpp": task.mpp}


def failed_unforeseen(state: SlideState) -> bool:
    """Whether a slide's failure may have left the libraries of its process damaged."""
    return _TRACE in state.details


def _process(options: PatchOptions, task: SlideTask, state: SlideState, progress: Callable[[int], None]) -> SlideState:
    with local_copy(task.path, options.cache_dir) as path, open_slide(path) as slide:
        check_whole(path)
        geometry = _geometry(options, slide, level0_mpp(slide, task.mpp))
        tissue = segment(slide, task.preset)
        coordinates = _coordinates(options, task, slide, tissue, geometry)
        files = options.outputs(task.name)
        write_geojson(files["geojson"], tissue)
        if options.overview:
            picture = draw_overview(slide, tissue, coordinates, task.preset.vis_level, task.preset.line_thickness)
            write_overview(files["overview"], picture)
        details = {
            "mpp0": geometry.mpp0,
            "mpp": geometry.mpp,
            "level": geometry.level,
            "native": geometry.native,
            "seg_level": tissue.level,
            "seg_downsample": tissue.downsample,
            "contours": len(tissue.contours),
        }
        if not len(coordinates):
            reason = (
                tissue.reason or f"no patch of {geometry.patch_size_level0} level-0 px fits {task.preset.contour_fn}"
            )
            return replace(state, status="empty", reason=reason, details=details)
        _write(options, task.name, coordinates, slide, progress)
    return replace(state, status="done", patches=len(coordinates), details=details)


def _geometry(options: PatchOptions, slide: SlideReader, mpp0: float) -> Geometry:
    if options.target_mpp is not None:
        geometry = geometry_at_mpp(slide, options.target_mpp, options.patch_size, mpp0, options.overlap)
    else:
        geometry = geometry_at_level(slide, options.level or 0, options.patch_size, mpp0, options.overlap)
    width, height = slide.level_dimensions[0]
    if geometry.patch_size_level0 > min(width, height):
        raise SlideError(
            f"{slide.path}: a patch is {geometry.patch_size_level0} level-0 px wide and high, more than the slide's "
            f"{width} x {height}. Use a smaller --patch-size, a lower --level or --target-mpp."
        )
    return geometry


def _coordinates(
    options: PatchOptions, task: SlideTask, slide: SlideReader, tissue: Tissue, geometry: Geometry
) -> Coordinates:
    preset, size = task.preset, slide.level_dimensions[0]
    coords = tissue_grid(tissue.contours, tissue.holes, size, geometry, preset.contour_fn, preset.use_padding)
    coordinates = Coordinates(task.name, size, coords, geometry, str(task.path.resolve()))
    if not options.drop_blank:
        return coordinates
    keep = np.ones(len(coords), dtype=bool)
    for index, _, pixels in _patches(coordinates, slide):
        keep[index] = not is_blank(pixels, preset.white_thresh, preset.black_thresh)
    return replace(coordinates, coords=coords[keep])


def _patches(
    coordinates: Coordinates, slide: SlideReader
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.uint8]]]:
    """Yield index, corner and pixels of all patches, in an order in which neighbours share tiles of the slide."""
    for index in reading_order(coordinates.coords, slide.tile_size):
        corner = coordinates.coords[index]
        yield int(index), corner, read_patch(slide, coordinates.geometry, corner[0], corner[1])


def _write(
    options: PatchOptions, name: str, coordinates: Coordinates, slide: SlideReader, progress: Callable[[int], None]
) -> None:
    """Write pixels and coordinates. The coordinate file comes last: where it is, all is."""
    files = options.outputs(name)
    with ExitStack() as stack:
        temporary = stack.enter_context(replacing(files["coords"]))
        file = stack.enter_context(h5py.File(temporary, "w"))
        dataset = file.create_dataset("coords", data=coordinates.coords)
        dataset.attrs.update(coordinate_attributes(coordinates, slide, files["coords"].parent))
        sinks: list[PixelSink] = []
        if "h5" in options.pixels:
            sinks.append(H5Sink(file, len(coordinates), coordinates.geometry.patch_size))
        if "tar" in options.pixels:
            sinks.append(stack.enter_context(tar_sink(files["tar"], name)))
        if "jpeg" in options.pixels:
            sinks.append(stack.enter_context(folder_sink(files["jpeg"])))
        if not sinks:
            return
        written = 0
        for index, corner, pixels in _patches(coordinates, slide):
            for sink in sinks:
                sink.add(index, corner, pixels)
            written += 1
            if written == _REPORT_EVERY:
                progress(written)
                written = 0
        progress(written)


def _complete(options: PatchOptions, state: SlideState) -> bool:
    files = options.outputs(state.name)
    wanted = ["geojson", *(["overview"] if options.overview else [])]
    if state.status == "done":
        wanted += ["coords", *(kind for kind in options.pixels if kind != "h5")]
    return all(files[kind].exists() for kind in wanted)


def _remove_outputs(options: PatchOptions, name: str) -> None:
    for path in options.outputs(name).values():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):  # of a process that was killed
            if stale.is_file():
                stale.unlink(missing_ok=True)
    remove_partial(options.outputs(name)["jpeg"])
