"""One slide on its way through the encoder."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from eval.embedding.feature_files import write_features
from eval.embedding.loader import Batch
from eval.embedding.options import PRECISIONS, EmbedOptions
from eval.embedding.plan import begin, missing_formats, reason_of, record
from eval.embedding.sources import PatchSource
from eval.encoders import Encoder
from eval.patching.state import SlideState


class SlideWork:
    """Takes the batches of a slide, and writes its features when all are there.

    Args:
        source: its patches.
        state: to begin with, see `eval.embedding.plan.look_at`.
        options: of the job.
    """

    def __init__(self, source: PatchSource, state: SlideState, options: EmbedOptions) -> None:
        self.source, self.options, self.seen = source, options, 0
        self._held, self._started, self._error = ExitStack(), time.perf_counter(), ""
        self._features: NDArray[np.float32] | None = None
        self.state, self._wanted = begin(source, state, options, self._held)
        self._formats = missing_formats(options, source.name)

    def take(self, encoder: Encoder, batch: Batch) -> None:
        """Embed a batch, unless the slide is another process's, or lost."""
        self.seen += len(batch.indices)
        if not self._wanted or self._error:
            return
        self._error, part = _embed(encoder, batch, self.options)
        if part is not None:
            if self._features is None:
                self._features = np.empty((len(self.source), part.shape[1]), np.float32)
            self._features[batch.indices] = part

    def finish(self, encoder: Mapping[str, str]) -> SlideState:
        """Write features and state; return the state. `encoder` is recorded with the features."""
        try:
            if self._wanted:
                self.state = replace(self._outcome(encoder), seconds=round(time.perf_counter() - self._started, 3))
                record(self.options, self.state)
        finally:
            self.release()
        return self.state

    def release(self) -> None:
        """Let other processes work on the slide."""
        self._held.close()

    def _outcome(self, encoder: Mapping[str, str]) -> SlideState:
        if self._error or self._features is None:
            return replace(self.state, status="failed", reason=self._error)
        try:
            write_features(self.options.out, self.source, self._features, encoder, self._formats)
        except (OSError, RuntimeError) as error:
            return replace(self.state, status="failed", reason=reason_of(error))
        details = {"dimension": self._features.shape[1]}
        return replace(self.state, status="done", patches=len(self.source), details=details)


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """Return the context in which a forward pass has one of `PRECISIONS`."""
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.partition(":")[0], dtype=dtype)


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
        return reason_of(error), None
    if part.ndim != 2 or len(part) != len(batch.indices):
        return f"the encoder returned shape {part.shape} for {len(batch.indices)} patches; it must be (B, D).", None
    if not np.isfinite(part).all():
        first = int(batch.indices[np.flatnonzero(~np.isfinite(part).all(axis=1))[0]])
        return (
            f"NaN or infinite embedding of patch {first}. Look for NaN in the checkpoint's weights, or, with fp16, use "
            "--precision bf16."
        ), None
    return "", part
