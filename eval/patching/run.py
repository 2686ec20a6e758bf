"""A patching job: all slides, in worker processes, with progress, process list and summary."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from dinov2.slides.open import slide_name
from eval.patching.options import JOB, PatchOptions, SlideTask
from eval.patching.pool import Advanced, Died, Event, Finished, run_tasks
from eval.patching.presets import Preset
from eval.patching.process import process_slide
from eval.patching.process_list import read_process_list, write_process_list
from eval.patching.slides import Shard, find_slides, read_mpps, take_shard
from eval.patching.state import SlideState, read_state, state_path, write_state
from eval.patching.summary import write_summary

PROCESS_LIST = "process_list_autogen.csv"  # CLAM's name


@dataclass(frozen=True)
class Plan:
    """All slides of a job, and the tasks of this shard.

    Attributes:
        slides: name -> path, of all shards.
        presets: name -> parameters.
        tasks: what is to be done here.
    """

    slides: Mapping[str, Path]
    presets: Mapping[str, Preset]
    tasks: Sequence[SlideTask]


def make_plan(
    places: Sequence[Path],
    preset: Preset,
    *,
    mpp: float | None = None,
    mpp_csv: Path | None = None,
    process_list: Path | None = None,
    shard: Shard | None = None,
    out: Path | None = None,
) -> Plan:
    """Find the slides and settle the parameters of each.

    Args:
        places: slides and folders of slides.
        preset: parameters of slides that no list names others for.
        mpp: micrometres per level-0 px of all slides, whatever their metadata say.
        mpp_csv: the same for each slide, see `read_mpps`; wins over `mpp`.
        process_list: slides to do and their parameters, see `read_process_list`; a column mpp wins over both.
        shard: the part of the slides to do here.
        out: output folder; pictures in it are no slides.

    Raises:
        EvalError: any of them cannot be used.
    """
    found = find_slides(places, out)
    slides = {slide_name(path): path for path in found}
    mpps = read_mpps(mpp_csv, slides) if mpp_csv is not None else {}
    listed = read_process_list(process_list, slides, preset) if process_list is not None else None
    if listed is not None:
        slides = {name: path for name, path in slides.items() if name in listed}
        mpps |= {name: row.mpp for name, row in listed.items() if row.mpp is not None}
    presets = {name: preset if listed is None else listed[name].preset for name in slides}
    chosen = [name for name in slides if listed is None or listed[name].process]
    mine = {slide_name(path) for path in take_shard([slides[name] for name in chosen], shard)}
    tasks = [SlideTask(name, slides[name], presets[name], mpps.get(name, mpp)) for name in chosen if name in mine]
    return Plan(slides, presets, tasks)


def run_patching(
    plan: Plan, options: PatchOptions, *, workers: int = 1, progress: bool = True, settings: Mapping[str, object] = {}
) -> list[SlideState]:
    """Do what is missing, and return the states of this shard's slides.

    Writes the folders that `PatchOptions.outputs` names, OUT/process_list_autogen.csv and the summary, the last two
    also when interrupted.

    Args:
        plan: see `make_plan`.
        options: the same for all slides.
        workers: processes; 0 works in this one.
        progress: show bars of slides and, where pixels are written, of patches.
        settings: recorded in the summary.
    """
    states: dict[str, SlideState] = {}
    try:
        with (
            tqdm(total=len(plan.tasks), unit="slide", desc=JOB, disable=not progress) as slide_bar,
            tqdm(unit="patch", desc="pixels", disable=not (progress and options.pixels)) as patch_bar,
        ):
            for event in run_tasks(partial(process_slide, options), plan.tasks, workers):
                if isinstance(event, Advanced):
                    patch_bar.update(event.count)
                    continue
                state = _outcome(event, plan.tasks[event.task], options.out)
                states[state.name] = state
                slide_bar.update()
                failed = sum(s.status == "failed" for s in states.values())
                slide_bar.set_postfix(patches=sum(s.patches for s in states.values()), failed=failed)
    finally:
        _write_reports(plan, options.out, states, settings)
    return [states[task.name] for task in plan.tasks]


def _outcome(event: Event, task: SlideTask, out: Path) -> SlideState:
    if isinstance(event, Finished):
        return event.result
    assert isinstance(event, Died)
    path = state_path(out, JOB, task.name)
    state = read_state(path) or SlideState(task.name, str(task.path), "", "running")
    state = replace(state, status="failed", reason=event.reason)
    with suppress(OSError):  # the disk is full, say: the state in memory still makes the exit code and the message
        write_state(path, state)
    return state


def _write_reports(plan: Plan, out: Path, here: Mapping[str, SlideState], settings: Mapping[str, object]) -> None:
    """Write process list and summary of all slides, those that other shards have done included."""
    known = {name: here.get(name) or read_state(state_path(out, JOB, name)) for name in plan.slides}
    states = [state for state in known.values() if state is not None]
    write_process_list(out / PROCESS_LIST, plan.slides, plan.presets, states)
    write_summary(out, JOB, states, settings, [name for name, state in known.items() if state is None])
