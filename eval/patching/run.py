"""A patching job: all slides, in worker processes, with progress, process list and summary."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from dinov2.slides.open import slide_name
from eval.patching.local_copy import run_cache
from eval.patching.options import JOB, PatchOptions, SlideTask
from eval.patching.pool import Advanced, Died, Event, Finished, run_tasks
from eval.patching.presets import Preset
from eval.patching.process import failed_unforeseen, process_slide
from eval.patching.process_list import read_process_list
from eval.patching.reports import write_reports
from eval.patching.settings import is_of, settings_key, task_settings
from eval.patching.slides import Shard, find_slides, read_mpps, take_shard
from eval.patching.state import SlideState, read_state, state_path, write_state


@dataclass(frozen=True)
class Plan:
    """All slides of a job, and the tasks of this shard.

    Attributes:
        slides: name -> what it would be done with, of all shards.
        tasks: what is to be done here.
        preset: parameters of slides that no list names others for.
        kept: slides that a process list leaves as they are, whatever the settings of their outcome.
    """

    slides: Mapping[str, SlideTask]
    tasks: Sequence[SlideTask]
    preset: Preset
    kept: frozenset[str] = frozenset()


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
        mpp: micrometres per level-0 px of slides whose metadata are not usable.
        mpp_csv: the same for each slide, whatever its metadata say, see `read_mpps`.
        process_list: slides to do and their parameters, see `read_process_list`; a column mpp wins over `mpp_csv`.
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
    tasks = {name: SlideTask(name, slides[name], presets[name], mpps.get(name), mpp) for name in slides}
    return Plan(tasks, [tasks[name] for name in chosen if name in mine], preset, frozenset(slides) - set(chosen))


def run_patching(
    plan: Plan, options: PatchOptions, *, workers: int = 1, progress: bool = True, settings: Mapping[str, object] = {}
) -> list[SlideState]:
    """Do what is missing, and return the states of this shard's slides.

    Writes the folders that `PatchOptions.outputs` names, and the reports of all slides in OUT, see
    `eval.patching.reports`, these also when interrupted.

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
            run_cache(options.cache_dir) as cache_dir,
            tqdm(total=len(plan.tasks), unit="slide", desc=JOB, disable=not progress) as slide_bar,
            tqdm(unit="patch", desc="pixels", disable=not (progress and options.pixels)) as patch_bar,
        ):
            here = replace(options, cache_dir=cache_dir)
            for event in run_tasks(partial(process_slide, here), plan.tasks, workers, failed_unforeseen):
                if isinstance(event, Advanced):
                    patch_bar.update(event.count)
                    continue
                state = _outcome(event, plan.tasks[event.task], options)
                states[state.name] = state
                slide_bar.update()
                failed = sum(s.status == "failed" for s in states.values())
                slide_bar.set_postfix(patches=sum(s.patches for s in states.values()), failed=failed)
    finally:
        write_reports(plan.slides, plan.preset, plan.kept, options, states, settings)
    return [states[task.name] for task in plan.tasks]


def _outcome(event: Event, task: SlideTask, options: PatchOptions) -> SlideState:
    if isinstance(event, Finished):
        return event.result
    assert isinstance(event, Died)
    path = state_path(options.out, JOB, task.name)
    before = read_state(path)
    if before is None or not is_of(options, task, before):  # it died before it began
        parameters = task_settings(options, task)
        settings = settings_key(parameters)
        slide = str(task.path.absolute())
        before = SlideState(task.name, slide, "", "running", settings=settings, parameters=parameters)
    state = replace(before, status="failed", reason=event.reason)
    with suppress(OSError):  # the disk is full, say: the state in memory still makes the exit code and the message
        write_state(path, state)
    return state
