"""Scalars for tensorboard, written by the caller's thread.

tensorboardX's SummaryWriter hands events to a thread that ends at the first failed write, after which its full queue
blocks whoever adds to it, for ever. Its event files are written here without that thread.
"""

import math
import os
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

FLUSH_SECONDS = 30.0


class ScalarEvents:
    """Event files in a folder; a restarted run hides from tensorboard what was logged from `first_step` on.

    Writes raise OSError; the next one after a failure goes to a new file, since a damaged one is not read any further.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._folder, self._first_step = folder, first_step
        self._writer: EventsWriter | None = None
        self._flushed = time.monotonic()

    def add(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step, but for those that are NaN or infinite."""
        writer, self._writer = self._writer or self._open(), None
        for name, value in values.items():
            if not math.isfinite(value):
                continue
            writer.write_event(event_pb2.Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            writer.flush()
            self._flushed = time.monotonic()
        self._writer = writer

    def close(self) -> None:
        """Write what is still in memory."""
        if self._writer:
            self._writer.close()

    def _open(self) -> EventsWriter:
        self._folder.mkdir(parents=True, exist_ok=True)
        # Its own names tell apart no two files of the same second.
        writer = EventsWriter(str(self._folder / "events"), f".{os.getpid()}.{time.monotonic_ns()}")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        writer.write_event(event_pb2.Event(wall_time=time.time(), step=self._first_step, session_log=start))
        return writer
