"""The reports of a patching job: process list, manifest and summary of all slides in its output folder."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from eval.patching.options import JOB, PatchOptions, SlideTask
from eval.patching.presets import Preset
from eval.patching.process_list import write_manifest, write_process_list
from eval.patching.settings import differences, is_of, stored_preset
from eval.patching.state import SlideState, read_states
from eval.patching.summary import write_reports_alone, write_summary

logger = logging.getLogger(__name__)

PROCESS_LIST = "process_list_autogen.csv"  # CLAM's name
MANIFEST = "slides.csv"


def write_reports(
    slides: Mapping[str, SlideTask],
    preset: Preset,
    kept: frozenset[str],
    options: PatchOptions,
    here: Mapping[str, SlideState],
    settings: Mapping[str, object],
) -> None:
    """Write process list, manifest and summary of all slides: of this call, of other shards, and of earlier calls.

    Slides of earlier calls are those that this one has not been given, as long as they and their files exist; those of
    other settings are marked so.

    Args:
        slides: name -> what this call, all shards of it, would do.
        preset: its parameters of segmentation where no list names others.
        kept: those of `slides` whose stored outcome counts, whatever its settings.
        options: of this call.
        here: outcomes of this process.
        settings: recorded in the summary.
    """
    write_reports_alone(options.out, JOB, lambda: _write(slides, preset, kept, options, here, settings))


def _write(
    slides: Mapping[str, SlideTask],
    preset: Preset,
    kept: frozenset[str],
    options: PatchOptions,
    here: Mapping[str, SlideState],
    settings: Mapping[str, object],
) -> None:
    known, tasks, marks = dict[str, SlideState](), dict(slides), dict[str, str]()
    for state in read_states(options.out, JOB):
        task, name = slides.get(state.name), state.name
        if task is not None and name not in kept:
            if is_of(options, task, state):
                known[name] = state
        elif _exists(options, state):
            known[name] = state
            marks[name] = differences(options, preset if task is None else task.preset, state)
            if task is None:
                tasks[name] = SlideTask(name, Path(state.slide), stored_preset(state))
    # Of a slide at which another process is, that one's word counts.
    known |= {name: state for name, state in here.items() if state.status != "running" or name not in known}
    tasks = {name: tasks[name] for name in sorted(tasks)}
    states = [known[name] for name in tasks if name in known]
    paths, presets = {n: task.path for n, task in tasks.items()}, {n: task.preset for n, task in tasks.items()}
    write_process_list(options.out / PROCESS_LIST, paths, presets, states, kept)
    done = {paths[state.name]: marks.get(state.name, "") for state in states if state.status == "done"}
    write_manifest(options.out / MANIFEST, done)
    missing = [name for name in tasks if name not in known]
    states = [
        replace(s, details={**s.details, "other_settings": marks[s.name]}) if marks.get(s.name) else s for s in states
    ]
    write_summary(options.out, JOB, states, settings, missing)
    others = sum(bool(mark) for mark in done.values())
    if others:
        logger.warning(
            "%s also lists %d slides that were patched with other settings: see its column other_settings",
            options.out / MANIFEST,
            others,
        )


def _exists(options: PatchOptions, state: SlideState) -> bool:
    """Whether the slide of an earlier call is still there, and its coordinates where it has some."""
    return Path(state.slide).is_file() and (state.status != "done" or options.outputs(state.name)["coords"].is_file())
