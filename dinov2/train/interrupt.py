"""Stopping at the end of a step: signals and the end of a job's time only raise a flag, which the trainer reads.

What Slurm sends, and what is made of it:

    SIGUSR1, SIGUSR2     before the time limit (`--signal=USR2@120`) or by `scancel --signal=USR2`
    SIGTERM, SIGCONT     pre-emption, and `scancel`; SIGCONT only wakes a suspended process and is ignored
    the deadline         `train.stop_before_minutes` before the job ends, for clusters that send nothing

Each of them asks for a checkpoint and a place in the queue (`dinov2.train.requeue`). SIGINT, a person's Ctrl-C, asks
for a checkpoint and the end.
"""

import logging
import signal
import time
from enum import IntEnum
from types import FrameType, TracebackType

logger = logging.getLogger("dinov2")
CONFIRM_SECONDS = 1.0  # launchers may pass on one Ctrl-C that the terminal has already delivered


class StopReason(IntEnum):
    """Why to stop, in such an order that the maximum over ranks is the one that all follow: Ctrl-C above all."""

    NONE = 0
    DEADLINE = 1
    USR1 = 2
    USR2 = 3
    TERM = 4
    INT = 5

    @property
    def exit_code(self) -> int:
        """The exit code of a run that this reason stopped: 128 + signal, 124 (as of timeout(1)) at the deadline."""
        if self in (StopReason.NONE, StopReason.DEADLINE):
            return 0 if self == StopReason.NONE else 124
        return 128 + signal.Signals[f"SIG{self.name}"].value

    @property
    def goes_on(self) -> bool:
        """Whether the run is to continue in a later job: it was not a person who ended it."""
        return self not in (StopReason.NONE, StopReason.INT)


SIGNALS = {signal.Signals[f"SIG{reason.name}"]: reason for reason in StopReason if reason > StopReason.DEADLINE}
STOPPED_EXIT_CODES = {reason.exit_code: reason for reason in StopReason if reason != StopReason.NONE}


class StopRequest:
    """A context in which the signals above only raise a flag; a second SIGINT, a second later, interrupts at once.

    Enter it in the main thread and as early as possible: before, a signal ends the process. Entering it replaces
    whatever handlers were there (submitit's, which saves on rank 0 only), leaving it restores them.
    """

    def __init__(self) -> None:
        self.reason = StopReason.NONE
        self._deadline = float("inf")
        self._first_interrupt = float("inf")
        self._previous: dict[int, object] = {}

    def stop_at(self, deadline: float | None) -> None:
        """Ask to stop from `deadline` on (seconds since the epoch); `None` for never."""
        self._deadline = float("inf") if deadline is None else deadline

    def code(self) -> int:
        """Return the StopReason as a number, 0 to go on; the maximum over ranks is the reason for all of them."""
        if self.reason == StopReason.NONE and time.time() >= self._deadline:
            self.reason = StopReason.DEADLINE
            logger.warning("the job's time is nearly over: saving a checkpoint at the end of this step")
        return int(self.reason)

    @property
    def signal(self) -> int | None:
        """The number of the signal that asked to stop, None without one."""
        return self.reason.exit_code - 128 if self.reason > StopReason.DEADLINE else None

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        self._previous[signal.SIGCONT] = signal.signal(signal.SIGCONT, signal.SIG_IGN)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            # None: a handler that was not installed from Python, and cannot be from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if time.monotonic() - self._first_interrupt > CONFIRM_SECONDS:
                raise KeyboardInterrupt
            self._first_interrupt = min(self._first_interrupt, time.monotonic())
        first = self.reason == StopReason.NONE
        self.reason = max(self.reason, SIGNALS[signal.Signals(number)])  # before the message, which may not come out
        if first:
            logger.warning("%s: saving a checkpoint at the end of this step", signal.Signals(number).name)
