"""An embedding job: slides in turn, their patches through one encoder, a feature file and a state for each."""

import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dinov2.utils.errors import UserError
from eval.embedding.feature_files import feature_paths, write_features
from eval.embedding.loader import Batch, load_batches
from eval.embedding.sources import PatchSource
from eval.encoders import Encoder
from eval.patching.local_copy import remove_shared_copy
from eval.patching.state import SlideState, job_key, read_state, read_states, state_path, write_state
from eval.patching.summary import write_summary

JOB = "embed"
VERSION = 1  # part of every key
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class EmbedOptions:
    """What is asked for, the same for all slides.

    Attributes:
        out: folder of `h5_files`, `pt_files` and `state`.
        batch_size: patches a forward pass.
        precision: of the arithmetic, one of `PRECISIONS`; embeddings are float32 in any case.
        formats: of `feature_files.FORMATS`.
        workers: reading processes.
        device: where the encoder is, a torch device.
        cache_dir: local folder to which slides are copied before they are read.
    """

    out: Path
    batch_size: int = 64
    precision: str = "fp32"
    formats: tuple[str, ...] = ("h5", "pt")
    workers: int = 1
    device: str = "cpu"
    cache_dir: Path | None = None


@dataclass(frozen=True)
class SlideToEmbed:
    """A slide, and how its patches are found: called late, so that one unusable slide does not end the others."""

    name: str
    path: Path
    open: Callable[[], PatchSource]


def embed_slides(
    encoder: Encoder,
    slides: Sequence[SlideToEmbed],
    options: EmbedOptions,
    *,
    progress: bool = True,
    settings: Mapping[str, object] | None = None,
) -> list[SlideState]:
    """Embed the slides whose features are missing or out of date; return the states of all of them.

    Args:
        encoder: see `eval.encoders`.
        slides: what to embed.
        options: see `EmbedOptions`.
        progress: show bars of slides and patches.
        settings: recorded in the summary, which is written also when interrupted.
    """
    states: dict[str, SlideState] = {}
    encoder_facts = {"encoder": json.dumps({"name": encoder.name, **encoder.settings, "precision": options.precision})}
    recorded = {"encoder": encoder.name, "precision": options.precision, **(settings or {})}
    try:
        todo: list[tuple[PatchSource, SlideState]] = []
        for slide in slides:
            source, state = _begin(slide, encoder, options)
            if source is None:
                states[slide.name] = state
            else:
                todo.append((source, state))
        with (
            tqdm(total=len(slides), initial=len(states), unit="slide", desc=JOB, disable=not progress) as slide_bar,
            tqdm(total=sum(len(s) for s, _ in todo), unit="patch", disable=not progress) as patch_bar,
            closing(_embedded(encoder, todo, options, patch_bar)) as embedded,
        ):
            for source, state, features in embedded:
                if features is not None:
                    state = _finish(options, source, state, features, encoder_facts)
                _record(options, state)
                states[state.name] = state
                slide_bar.update()
    finally:
        asked = job_key(_settings(encoder, options))
        others = {state.name: state for state in read_states(options.out, JOB) if state.settings == asked}
        known = others | states  # with those of other shards, but not of other encoders
        missing = [slide.name for slide in slides if slide.name not in known]
        write_summary(options.out, JOB, [known[name] for name in sorted(known)], recorded, missing)
    return [states[slide.name] for slide in slides]


def _begin(slide: SlideToEmbed, encoder: Encoder, options: EmbedOptions) -> tuple[PatchSource | None, SlideState]:
    """Return the patches to embed and the state to begin with; no patches, where nothing is to be done or can be."""
    before = read_state(state_path(options.out, JOB, slide.name))
    settings = _settings(encoder, options)
    state = SlideState(slide.name, str(slide.path), "", "failed", settings=job_key(settings))
    try:
        source = slide.open()
    except Exception as error:  # a damaged file raises nearly anything
        state = replace(state, reason=_reason(error), attempts=before.attempts + 1 if before else 1)
        _record(options, state)
        return None, state
    key = job_key(settings, source.content)
    same = before if before is not None and before.key == key else None
    files = feature_paths(options.out, slide.name)
    if same is not None and same.final and all(files[kind].exists() for kind in options.formats if len(source)):
        return None, same
    for file in files.values():  # features of other weights or patches must not pass for these
        file.unlink(missing_ok=True)
    state = replace(state, key=key, status="running", attempts=same.attempts + 1 if same else 1)
    if not len(source):
        state = replace(state, status="empty", reason="no patches: its coordinate file is empty")
        _record(options, state)
        return None, state
    return source, state


def _settings(encoder: Encoder, options: EmbedOptions) -> dict[str, object]:
    return {"encoder": dict(encoder.settings), "precision": options.precision, "version": VERSION}


def _embedded(
    encoder: Encoder, todo: Sequence[tuple[PatchSource, SlideState]], options: EmbedOptions, bar: "tqdm"
) -> Generator[tuple[PatchSource, SlideState, NDArray[np.float32] | None], None, None]:
    """Yield every slide with its features (N, D); None where it failed, which its state then says."""
    sources = [source for source, _ in todo]
    features: NDArray[np.float32] | None = None
    error, started, seen = "", time.perf_counter(), 0
    on_gpu = options.device.startswith("cuda")
    batches = load_batches(sources, options.batch_size, options.workers, options.cache_dir, pin_memory=on_gpu)
    try:
        with closing(batches):
            for batch in batches:
                source, state = todo[batch.source]
                if not seen:
                    _record(options, state)
                if not error:
                    error, part = _embed(encoder, batch, options)
                    if part is not None:
                        features = np.empty((len(source), part.shape[1]), np.float32) if features is None else features
                        features[batch.indices] = part
                seen += len(batch.indices)
                bar.update(len(batch.indices))
                if batch.last:
                    bar.update(len(source) - seen)  # of a slide that was given up
                    seconds = round(time.perf_counter() - started, 3)
                    status = replace(state, seconds=seconds, patches=0 if error else len(source))
                    yield (
                        source,
                        replace(status, status="failed", reason=error) if error else status,
                        None if error else features,
                    )
                    features, error, started, seen = None, "", time.perf_counter(), 0
                    if options.cache_dir is not None:
                        remove_shared_copy(source.path, options.cache_dir)
    finally:  # the processes that copy have ended
        if options.cache_dir is not None:
            for source in sources:
                remove_shared_copy(source.path, options.cache_dir)


def _embed(encoder: Encoder, batch: Batch, options: EmbedOptions) -> tuple[str, NDArray[np.float32] | None]:
    """Return an error or the embeddings (B, D) of a batch."""
    if batch.images is None:
        return batch.error, None
    try:
        with autocast(options.device, options.precision):
            part = encoder.embed(batch.images.numpy())  # (B, D)
    except torch.OutOfMemoryError as error:
        return f"{error} Use a smaller --batch-size than {options.batch_size}.", None
    except Exception as error:  # of any encoder: one slide's surprise must not end the others
        return _reason(error), None
    if part.ndim != 2 or len(part) != len(batch.indices):
        return f"the encoder returned shape {part.shape} for {len(batch.indices)} patches; it must be (B, D).", None
    if not np.isfinite(part).all():
        first = int(batch.indices[np.flatnonzero(~np.isfinite(part).all(axis=1))[0]])
        return (
            f"NaN or infinite embedding of patch {first}. Look for NaN in the checkpoint's weights, or, with fp16, use "
            "--precision bf16."
        ), None
    return "", part


def _record(options: EmbedOptions, state: SlideState) -> None:
    with suppress(OSError):  # the disk is full, say: the state in memory still makes the exit code and the message
        write_state(state_path(options.out, JOB, state.name), state)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError | OSError) else f"{type(error).__name__}: {error}"


def _finish(
    options: EmbedOptions,
    source: PatchSource,
    state: SlideState,
    features: NDArray[np.float32],
    encoder: Mapping[str, str],
) -> SlideState:
    try:
        write_features(options.out, source, features, encoder, options.formats)
    except (OSError, RuntimeError) as error:
        return replace(state, status="failed", reason=_reason(error), patches=0)
    return replace(state, status="done", details={"dimension": features.shape[1]})


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """Return the context in which a forward pass has one of `PRECISIONS`."""
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.partition(":")[0], dtype=dtype)
