"""Whether a slide has to be embedded, and beginning to: its state, its lock, and features of other settings."""

from contextlib import ExitStack, suppress
from dataclasses import replace

from dinov2.utils.errors import UserError
from eval.embedding.feature_files import feature_paths
from eval.embedding.options import JOB, EmbedOptions, SlideToEmbed
from eval.embedding.sources import PatchSource
from eval.patching.locks import BusyError, alone
from eval.patching.state import SlideState, job_key, lock_path, read_state, state_path, write_state


def look_at(
    slide: SlideToEmbed, settings: dict[str, object], options: EmbedOptions
) -> tuple[PatchSource | None, SlideState]:
    """Return the patches to embed and the state to begin with; no patches, where nothing is to be done or can be.

    Args:
        slide: the slide.
        settings: see `embed_settings`.
        options: of the job.
    """
    before, settings_key = read_state(state_path(options.out, JOB, slide.name)), job_key(settings)
    if before is not None and before.settings != settings_key:
        before = None
    state = SlideState(slide.name, str(slide.path), "", "failed", settings=settings_key)
    try:
        source = slide.open()
    except Exception as error:  # a damaged file raises nearly anything
        attempts = before.attempts + 1 if before else 1
        state = replace(before or state, status="failed", reason=reason_of(error), attempts=attempts, patches=0)
        record(options, state)
        return None, state
    key = job_key(settings, source.content)
    same = before if before is not None and before.key == key else None
    if same is not None and is_complete(options, source, same):
        return None, _done(options, source, same)
    state = replace(state, key=key, status="running", attempts=same.attempts + 1 if same else 1)
    if not len(source):
        _remove(options, slide.name)
        state = replace(state, status="empty", reason="no patches: its coordinate file is empty")
        record(options, state)
        return None, state
    return source, state


def begin(source: PatchSource, state: SlideState, options: EmbedOptions, held: ExitStack) -> tuple[SlideState, bool]:
    """Begin a slide of `look_at`: lock it, and remove features of another key, which must not pass for those to come.

    Args:
        source: its patches.
        state: to begin with.
        options: of the job.
        held: takes the lock.

    Returns:
        The state, and whether the slide is to be embedded: not where another process is at it, or was and has done it.
    """
    try:
        held.enter_context(alone(lock_path(options.out, JOB, state.name), f"slide {state.name}"))
        before = read_state(state_path(options.out, JOB, state.name))
        if before is None or before.key != state.key:
            _remove(options, state.name)
        elif is_complete(options, source, before):
            return _done(options, source, before), False
    except BusyError as error:
        return replace(state, reason=str(error)), False
    except OSError as error:
        return replace(state, status="failed", reason=reason_of(error)), False
    record(options, state)
    return state, True


def missing_formats(options: EmbedOptions, name: str) -> tuple[str, ...]:
    """Return the formats asked for of which a slide has no file."""
    paths = feature_paths(options.out, name)
    return tuple(kind for kind in options.formats if not paths[kind].exists())


def is_complete(options: EmbedOptions, source: PatchSource, state: SlideState) -> bool:
    """Whether the outcome of a key has all that is asked for."""
    if not len(source):
        return state.status == "empty"
    return "dimension" in state.details and not missing_formats(options, state.name)


def record(options: EmbedOptions, state: SlideState) -> None:
    """Write a state if that is possible."""
    with suppress(OSError):  # the disk is full, say: the state in memory still makes the exit code and the message
        write_state(state_path(options.out, JOB, state.name), state)


def reason_of(error: Exception) -> str:
    """Return what is told of an error."""
    return str(error) if isinstance(error, UserError | OSError) else f"{type(error).__name__}: {error}"


def _done(options: EmbedOptions, source: PatchSource, state: SlideState) -> SlideState:
    """Return the state of a complete slide, which may have failed to open in between."""
    if state.final:
        return state
    state = replace(state, status="done", reason="", patches=len(source))
    record(options, state)
    return state


def _remove(options: EmbedOptions, name: str) -> None:
    for path in feature_paths(options.out, name).values():
        path.unlink(missing_ok=True)
