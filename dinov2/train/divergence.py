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


def first_bad_rank(report: StepReport) -> int:
    """Return the lowest rank of the part that is not finite on the fewest; 0 where only averaged gradients are not."""
    fewest = min((where for name, where in report.bad.items() if not _is_average(name)), key=len, default={0: 0.0})
    return min(fewest)


def describe(report: StepReport, world_size: int) -> str:
    """Name the parts that are not finite, and the ranks where they are not: `ibot_loss = nan on rank 3`.

    Those on the fewest ranks come first: Sinkhorn-Knopp and KoLeo carry one rank's NaN to all of them.
    """
    texts = []
    for name, where in sorted(report.bad.items(), key=lambda item: (_is_average(item[0]), len(item[1]))):
        value = next(iter(where.values()))
        ranks = ", ".join(map(str, where))
        place = f" on rank {ranks}" if len(where) < world_size else " on all ranks"
        texts.append(f"{name} = {value}" + place * (world_size > 1 and not _is_average(name)))
    return ", ".join(texts)


def _is_average(name: str) -> bool:
    """Tell whether a number is of averaged gradients, which says nothing of where they come from."""
    return name.startswith("grad_norm_")
