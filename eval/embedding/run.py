"""An embedding job: slides in turn, their patches through one encoder, a feature file and a state for each."""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from tqdm import tqdm

from eval.embedding.loader import load_batches
from eval.embedding.options import JOB, EmbedOptions, SlideToEmbed, embed_settings
from eval.embedding.plan import look_at
from eval.embedding.sources import PatchSource
from eval.embedding.work import SlideWork
from eval.encoders import Encoder
from eval.patching.local_copy import remove_shared_copy, run_cache
from eval.patching.state import SlideState, job_key, read_states
from eval.patching.summary import write_reports_alone, write_summary


def embed_slides(
    encoder: Encoder,
    slides: Sequence[SlideToEmbed],
    options: EmbedOptions,
    *,
    progress: bool = True,
    settings: Mapping[str, object] | None = None,
    names: Sequence[str] = (),
) -> list[SlideState]:
    """Embed the slides whose features are missing or out of date; return the states of all of them.

    Slides are opened while those before them are embedded, so that the first begins at once.

    Args:
        encoder: see `eval.encoders`.
        slides: what to embed.
        options: see `EmbedOptions`.
        progress: show bars of slides and patches.
        settings: recorded in the summary, which is written also when interrupted.
        names: of the slides of all shards.
    """
    states: dict[str, SlideState] = {}
    recorded = {"encoder": encoder.name, "precision": options.precision, **(settings or {})}
    try:
        with (
            run_cache(options.cache_dir) as cache_dir,
            tqdm(total=len(slides), unit="slide", desc=JOB, disable=not progress) as slide_bar,
            tqdm(unit="patch", disable=not progress) as patch_bar,
        ):
            _embed_all(encoder, slides, replace(options, cache_dir=cache_dir), states, slide_bar, patch_bar)
    finally:
        write_reports_alone(options.out, JOB, lambda: _write_summary(encoder, options, states, recorded, names))
    return [states[slide.name] for slide in slides]


def _embed_all(
    encoder: Encoder,
    slides: Sequence[SlideToEmbed],
    options: EmbedOptions,
    states: dict[str, SlideState],
    slide_bar: "tqdm",
    patch_bar: "tqdm",
) -> None:
    """Fill `states`."""
    asked = embed_settings(encoder, options)
    facts = {"encoder": json.dumps({"name": encoder.name, **encoder.settings, "precision": options.precision})}
    begun: dict[int, tuple[PatchSource, SlideState]] = {}
    lock = threading.Lock()  # slides may be opened in the reading thread

    def settle(state: SlideState) -> None:
        with lock:
            states[state.name] = state
            slide_bar.update()

    def sources() -> Iterator[tuple[int, PatchSource]]:
        patches = 0
        for number, slide in enumerate(slides):
            source, state = look_at(slide, asked, options)
            if source is None:
                settle(state)
                continue
            patches += len(source)
            begun[number] = (source, state)
            yield number, source
        patch_bar.total = patches  # known now

    on_gpu, work = options.device.startswith("cuda"), None
    batches = load_batches(sources(), options.batch_size, options.workers, options.cache_dir, pin_memory=on_gpu)
    try:
        with closing(batches):
            for batch in batches:
                work = work or SlideWork(*begun[batch.source], options)
                work.take(encoder, batch)
                patch_bar.update(len(batch.indices))
                if batch.last:
                    patch_bar.update(len(work.source) - work.seen)  # of a slide that was given up
                    settle(work.finish(facts))
                    if options.cache_dir is not None:
                        remove_shared_copy(work.source.path, options.cache_dir)
                    work = None
                    del begun[batch.source]
    finally:
        if work is not None:
            work.release()


def _write_summary(
    encoder: Encoder,
    options: EmbedOptions,
    states: Mapping[str, SlideState],
    recorded: Mapping[str, object],
    names: Sequence[str],
) -> None:
    asked = job_key(embed_settings(encoder, options))
    others = {state.name: state for state in read_states(options.out, JOB) if state.settings == asked}
    # Those of other shards, but not of other encoders; of a slide at which another process is, that one's word counts.
    known = others | {n: state for n, state in states.items() if state.status != "running" or n not in others}
    missing = [name for name in names if name not in known]
    write_summary(options.out, JOB, [known[name] for name in sorted(known)], recorded, missing)
