"""The settings of a slide's outcome: what its key holds, and whether a stored outcome is of the settings asked for.

Coordinates follow from these settings and the slide's content. Formats of pixels and the overview picture do not
decide them: those are added to what is there, see `eval.patching.outputs`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from dinov2.slides.magnification import same_mpp
from eval.patching.options import PatchOptions, SlideTask
from eval.patching.presets import Preset
from eval.patching.state import SlideState, job_key

_OF_THE_PICTURE = ("vis_level", "line_thickness")


def task_settings(options: PatchOptions, task: SlideTask) -> dict[str, Any]:
    """Return the settings of a slide's outcome, as JSON gives them back."""
    settings = {**options.settings(), **asdict(task.preset), "mpp": task.mpp}
    stored: dict[str, Any] = json.loads(json.dumps(settings))
    return stored


def settings_key(settings: Mapping[str, Any]) -> str:
    """Return a hash of those of the settings of `task_settings` that decide the coordinates."""
    return job_key({name: value for name, value in settings.items() if name not in _OF_THE_PICTURE})


def drawn_with(preset: Preset) -> list[int]:
    """Return level and line thickness of the overview picture."""
    return [preset.vis_level, preset.line_thickness]


def is_of(options: PatchOptions, task: SlideTask, state: SlideState) -> bool:
    """Whether a stored outcome is of the settings asked for; the slide's content is not looked at.

    The level that -1 has chosen before is as good as -1: process lists name it.
    """
    presets = [task.preset]
    if state.details.get("seg_level") == task.preset.seg_level:
        presets.append(replace(task.preset, seg_level=-1))
    keys = [settings_key(task_settings(options, replace(task, preset=preset))) for preset in presets]
    return state.settings in keys and _same_mpp(task, state.details)


def stored_preset(state: SlideState) -> Preset:
    """Return the parameters of segmentation of a stored outcome."""
    names = {field.name for field in fields(Preset)} & state.parameters.keys()
    stored = {name: state.parameters[name] for name in names}
    cells: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
    return Preset(**cells)


def differences(options: PatchOptions, preset: Preset, state: SlideState) -> str:
    """Return in words which settings of a stored outcome are others than these; empty where none is."""
    if not state.parameters:
        return "unknown settings"
    if state.details.get("seg_level") == preset.seg_level:
        preset = replace(preset, seg_level=stored_preset(state).seg_level)
    asked = {**options.settings(), **json.loads(json.dumps(asdict(preset)))}
    other = {name: value for name, value in state.parameters.items() if name in asked and name not in _OF_THE_PICTURE}
    return " ".join(f"{name}={json.dumps(value)}" for name, value in other.items() if value != asked[name])


def _same_mpp(task: SlideTask, details: Mapping[str, Any]) -> bool:
    """Whether a stored outcome would have the same pixel size now."""
    if task.mpp is not None or "mpp0" not in details:
        return True
    if "default_mpp" in details:
        return bool(details["default_mpp"] == task.default_mpp)
    return task.default_mpp is None or same_mpp(details["mpp0"], task.default_mpp)
