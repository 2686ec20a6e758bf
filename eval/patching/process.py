"""One slide, from the file to its coordinates: the work of one worker process."""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dinov2.slides.coordinates import (
    Coordinates,
    Geometry,
    file_number,
    geometry_at_level,
    geometry_at_mpp,
    read_patch,
    reading_order,
)
from dinov2.slides.coordinates_file import coordinate_attributes, read_coordinates
from dinov2.slides.errors import SlideError
from dinov2.slides.integrity import check_whole
from dinov2.slides.magnification import filled_mpp, level0_mpp
from dinov2.slides.open import open_slide
from dinov2.slides.reader import SlideReader
from dinov2.utils.errors import UserError
from dinov2.utils.files import replacing
from eval.patching.geojson import write_geojson
from eval.patching.grid import tissue_grid
from eval.patching.local_copy import local_copy
from eval.patching.locks import BusyError, alone
from eval.patching.options import JOB, PatchOptions, SlideTask
from eval.patching.outputs import missing_outputs, remove_leftovers, remove_outputs
from eval.patching.overview import draw_overview, write_overview
from eval.patching.pixels import H5Sink, PixelSink, folder_sink, is_blank, tar_sink
from eval.patching.segmentation import Tissue, segment
from eval.patching.settings import drawn_with, is_of, settings_key, task_settings
from eval.patching.state import SlideState, fingerprint, job_key, lock_path, read_state, state_path, write_state

_REPORT_EVERY = 64  # patches
_TRACE = "traceback"


def process_slide(options: PatchOptions, task: SlideTask, progress: Callable[[int], None]) -> SlideState:
    """Bring one slide's files up to date and return its state; nothing is done where they are.

    Files of these settings stay, and those that are missing are added; files of other settings go when the slide is
    begun. Whatever goes wrong with the slide becomes a `failed` state; `progress` is told how many patches' pixels were
    written. A slide at which another process is stays as it is, and is `running`.

    Raises:
        OSError: the state itself cannot be written.
    """
    try:
        content = fingerprint(task.path)
    except OSError as error:
        content = f"unreadable: {error}"
    path = state_path(options.out, JOB, task.name)
    same = _same(options, task, content, read_state(path))
    if same is not None and same.final and not missing_outputs(options, task, same):
        return same
    try:
        with alone(lock_path(options.out, JOB, task.name), f"slide {task.name}"):
            return _process_alone(options, task, content, progress)
    except BusyError as error:
        return SlideState(task.name, str(task.path.absolute()), "", "running", reason=str(error))


def _process_alone(options: PatchOptions, task: SlideTask, content: str, progress: Callable[[int], None]) -> SlideState:
    path = state_path(options.out, JOB, task.name)
    state = _same(options, task, content, read_state(path))
    remove_leftovers(options, task.name)
    if state is None:
        remove_outputs(options, task.name)  # those of other settings must not pass for these
        parameters = task_settings(options, task)
        settings = settings_key(parameters)
        key = job_key({"settings": settings}, content)
        slide = str(task.path.absolute())
        state = SlideState(task.name, slide, key, "running", settings=settings, parameters=parameters)
    elif state.final and not missing_outputs(options, task, state):
        return state  # another process has just done it
    else:
        details = {name: value for name, value in state.details.items() if name != _TRACE}
        state = replace(state, status="running", reason="", attempts=state.attempts + 1, patches=0, details=details)
    write_state(path, state)
    started = time.perf_counter()
    try:
        state = _process(options, task, state, progress)
    except UserError as error:
        state = replace(state, status="failed", reason=str(error))
    except Exception as error:  # one slide's surprise must not end the others
        reason = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        details = {**state.details, _TRACE: traceback.format_exc()}
        state = replace(state, status="failed", reason=reason, details=details)
    state = replace(state, seconds=round(time.perf_counter() - started, 3))
    write_state(path, state)
    return state


def _same(options: PatchOptions, task: SlideTask, content: str, state: SlideState | None) -> SlideState | None:
    """Return a stored outcome if it is of these settings and of this content."""
    if state is None or not is_of(options, task, state):
        return None
    return state if state.key == job_key({"settings": state.settings}, content) else None


def failed_unforeseen(state: SlideState) -> bool:
    """Whether a slide's failure may have left the libraries of its process damaged."""
    return _TRACE in state.details


def _process(options: PatchOptions, task: SlideTask, state: SlideState, progress: Callable[[int], None]) -> SlideState:
    missing, files = missing_outputs(options, task, state), options.outputs(task.name)
    with local_copy(task.path, options.cache_dir) as path, open_slide(path) as slide:
        check_whole(path)
        mpp0, by_default = _mpp0(task, slide)
        geometry = _geometry(options, slide, mpp0)
        again = missing & {"coords", "geojson", "overview"} or "contours" not in state.details
        tissue = segment(slide, task.preset) if again else None
        if tissue is not None and "coords" in missing:
            coordinates = _coordinates(options, task, slide, tissue, geometry)
        else:
            coordinates = _new_coordinates(task, slide, read_coordinates(files["coords"]).coords, geometry)
        if tissue is not None:
            details = _details(geometry, tissue)
            if by_default:
                details["default_mpp"] = mpp0
            if "geojson" in missing:
                write_geojson(files["geojson"], tissue)
            if "overview" in missing:
                vis_level, thickness = details["overview"] = drawn_with(task.preset)
                write_overview(files["overview"], draw_overview(slide, tissue, coordinates, vis_level, thickness))
            elif "overview" in state.details:
                details["overview"] = state.details["overview"]
            state = replace(state, details=details)
        if tissue is not None and not len(coordinates):
            size, test = geometry.patch_size_level0, task.preset.contour_fn
            return replace(state, status="empty", reason=tissue.reason or f"no patch of {size} level-0 px fits {test}")
        _write(options, task.name, coordinates, slide, missing, progress)
    return replace(state, status="done", patches=len(coordinates))


def _details(geometry: Geometry, tissue: Tissue) -> dict[str, Any]:
    return {
        "mpp0": geometry.mpp0,
        "mpp": geometry.mpp,
        "level": geometry.level,
        "native": geometry.native,
        "seg_level": tissue.level,
        "seg_downsample": tissue.downsample,
        "contours": len(tissue.contours),
    }


def _mpp0(task: SlideTask, slide: SlideReader) -> tuple[float, bool]:
    """Return micrometres per level-0 px, and whether they are the default for want of better."""
    if task.mpp is not None or task.default_mpp is None:
        return level0_mpp(slide, task.mpp), False
    return filled_mpp(slide, task.default_mpp)


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
    coordinates = _new_coordinates(task, slide, coords, geometry)
    if not options.drop_blank:
        return coordinates
    keep = np.ones(len(coords), dtype=bool)
    for index, _, pixels in _patches(coordinates, slide):
        keep[index] = not is_blank(pixels, preset.white_thresh, preset.black_thresh)
    return replace(coordinates, coords=coords[keep])


def _new_coordinates(task: SlideTask, slide: SlideReader, coords: NDArray[np.int64], geometry: Geometry) -> Coordinates:
    place, number = str(task.path.resolve()), file_number(slide.path)
    return Coordinates(task.name, slide.level_dimensions[0], coords, geometry, place, number)


def _patches(
    coordinates: Coordinates, slide: SlideReader
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.uint8]]]:
    """Yield index, corner and pixels of all patches, in an order in which neighbours share tiles of the slide."""
    for index in reading_order(coordinates.coords, slide.tile_size, coordinates.geometry.level_downsample):
        corner = coordinates.coords[index]
        yield int(index), corner, read_patch(slide, coordinates.geometry, corner[0], corner[1])


def _write(
    options: PatchOptions,
    name: str,
    coordinates: Coordinates,
    slide: SlideReader,
    missing: set[str],
    progress: Callable[[int], None],
) -> None:
    """Write the missing pixels and coordinates, the coordinate file last: where it is, all was written."""
    files = options.outputs(name)
    with ExitStack() as stack:
        sinks: list[PixelSink] = []
        if missing & {"coords", "h5"}:
            temporary = stack.enter_context(replacing(files["coords"]))
            file = stack.enter_context(h5py.File(temporary, "w"))
            dataset = file.create_dataset("coords", data=coordinates.coords)
            dataset.attrs.update(coordinate_attributes(coordinates, slide, files["coords"].parent))
            if "h5" in missing:
                sinks.append(H5Sink(file, len(coordinates), coordinates.geometry.patch_size))
        if "tar" in missing:
            sinks.append(stack.enter_context(tar_sink(files["tar"], name)))
        if "jpeg" in missing:
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
