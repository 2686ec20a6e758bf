"""Micro-batches for the steps of one process, whose end the other processes learn of in time."""

import time
from collections.abc import Iterator
from typing import cast

from dinov2.data.collate import MultiCropBatch
from dinov2.utils.errors import UserError


class BatchFeed:
    """Hands out micro-batches. When its data fail it hands out the last one again and keeps the error in `failure`.

    The other processes wait in collectives that this one has to join: the step goes through, and before anything
    changes, all of them read in its report that it does not count.

    Attributes:
        failure: why there are no more data, None as long as there are.
        seconds_waited: time spent waiting for data since `reset`.
        bad: (path, reason) of the tiles that could not be decoded since then.
    """

    def __init__(self, batches: Iterator[MultiCropBatch]) -> None:
        self.failure: UserError | None = None
        self.seconds_waited = 0.0
        self.bad: list[tuple[str, str]] = []
        self._batches = batches
        self._last: MultiCropBatch | None = None

    def next(self) -> MultiCropBatch:
        """Return the next micro-batch.

        Raises:
            UserError: too many tiles are bad, a loader process has died, or the data set has become unusable, at the
                very first batch, when nothing has been done that could be lost.
        """
        began = time.perf_counter()
        if self.failure is None:  # after it, the iterator is at its end
            try:
                self._last = next(self._batches)
                self.bad += self._last.bad
            except UserError as error:
                if self._last is None:
                    raise
                self.failure = error
        self.seconds_waited += time.perf_counter() - began
        return cast(MultiCropBatch, self._last)

    def reset(self) -> None:
        """Count the waiting and the bad tiles from now on."""
        self.seconds_waited = 0.0
        self.bad = []
