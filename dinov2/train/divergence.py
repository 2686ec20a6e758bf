"""Steps in which a loss or a gradient is no finite number: a few are skipped, then the run stops.

One can be bad luck (a batch, a bit); more of them within a short time are not, and no later step repairs them.
"""

from collections import deque

from dinov2.train.step import StepReport

WINDOW = 100  # steps


class SkipBudget:
    """Allows `allowed` skipped steps among any 100 in a row."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self._skipped: deque[int] = deque()

    def spend(self, step: int) -> bool:
        """Note that a step is to be skipped; return whether that is still within the budget."""
        self._skipped.append(step)
        while self._skipped[0] <= step - WINDOW:
            self._skipped.popleft()
        return len(self._skipped) <= self.allowed


def describe(report: StepReport, world_size: int) -> str:
    """Name the parts that are not finite, and the ranks where they are not: `ibot_loss = nan on rank 3`."""
    texts = []
    for name, where in report.bad.items():
        value = next(iter(where.values()))
        ranks = ", ".join(map(str, where))
        # Gradients are averaged before their norm is taken: it says nothing of where they come from.
        everywhere = world_size == 1 or name.startswith("grad_norm_") or len(where) == world_size
        texts.append(f"{name} = {value}" + ("" if everywhere else f" on rank {ranks}"))
        if everywhere and world_size > 1 and not name.startswith("grad_norm_"):
            texts[-1] += " on all ranks"
    return ", ".join(texts)
