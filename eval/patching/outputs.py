"""The files of a slide: which are missing, and removing them."""

import glob
import shutil

import h5py

from eval.patching.options import PatchOptions, SlideTask
from eval.patching.pixels import remove_partial
from eval.patching.settings import drawn_with
from eval.patching.state import SlideState


def missing_outputs(options: PatchOptions, task: SlideTask, state: SlideState) -> set[str]:
    """Return what is asked for and not there: names of `PatchOptions.outputs`, and `h5` for pixels in the coordinates.

    Args:
        options: what is asked for.
        task: the slide.
        state: its state; files of other settings are gone where it has been begun with these.
    """
    files = options.outputs(task.name)
    wanted = {"geojson"} | ({"overview"} if options.overview else set())
    if state.status != "empty":
        wanted |= {"coords", *options.pixels}
    found = {name for name, path in files.items() if path.exists()}
    if state.details.get("overview") != drawn_with(task.preset):
        found.discard("overview")
    if "h5" in wanted and "coords" in found and _has_pixels(options, task.name):
        found.add("h5")
    return wanted - found


def remove_outputs(options: PatchOptions, name: str) -> None:
    """Remove all files of a slide, but not its state."""
    for path in options.outputs(name).values():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_leftovers(options: PatchOptions, name: str) -> None:
    """Remove what a killed process has left half-written."""
    for path in options.outputs(name).values():
        for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            if stale.is_file():
                stale.unlink(missing_ok=True)
    remove_partial(options.outputs(name)["jpeg"])


def _has_pixels(options: PatchOptions, name: str) -> bool:
    try:
        with h5py.File(options.outputs(name)["coords"], "r") as file:
            return "imgs" in file
    except OSError:
        return False
