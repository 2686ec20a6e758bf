"""What happens to tiles that cannot be decoded: replaced, named once, and an error where there are too many."""

import logging
import math
from collections.abc import Iterable, Sequence

from dinov2.data.errors import TooManyBadTilesError

logger = logging.getLogger(__name__)

FIRST_LOOK = 1000  # tiles
NAMED = 5  # paths in a message


class BadTileMonitor:
    """Counts damaged tiles in the main process.

    The rule: the run stops as soon as the number of different bad tiles exceeds
    ceil(max_bad_fraction * max(seen, min(n, 1000))), where n is the size of the data set and `seen` the number of
    samples so far, at most n. So a few bad tiles at the very start of a large set do not stop it, a fraction of 0
    tolerates none, and any other fraction tolerates at least one.

    It also stops when more samples had to be replaced than chance explains: more than e + 4 sqrt(e), where of so many
    bad tiles e = ceil(max_bad_fraction * n) / n * max(samples, 1000) are expected. So it is where a small part of a
    mixture has a large weight: few tiles are bad, but many samples.

    Args:
        max_bad_fraction: `data.max_bad_fraction`.
        dataset_size: number of tiles.
        consequence: what becomes of a bad tile, for the log.
    """

    def __init__(self, max_bad_fraction: float, dataset_size: int, consequence: str = "replaced by another") -> None:
        self.max_bad_fraction = max_bad_fraction
        self.dataset_size = dataset_size
        self.consequence = consequence
        self.paths: dict[str, str] = {}  # path -> reason, in the order of appearance
        self._samples = 0
        self._replaced = 0

    def update(self, bad: Iterable[tuple[str, str]], n_samples: int) -> None:
        """Take note of one batch.

        Args:
            bad: (path, reason) of each failure.
            n_samples: samples in the batch.

        Raises:
            TooManyBadTilesError: the rule above is broken.
        """
        self._samples += n_samples
        bad = list(bad)
        self._replaced += min(len(bad), n_samples)
        for path, reason in bad:
            if path not in self.paths:
                self.paths[path] = reason
                logger.warning("bad tile %d, %s: %s: %s", len(self.paths), self.consequence, path, reason)
        if len(self.paths) > self.allowed:
            raise TooManyBadTilesError(self._message())
        if self._replaced > self._most_replaced():
            raise TooManyBadTilesError(
                f"{self._replaced} of {self._samples} samples, {self._replaced / self._samples:.1%}, were of tiles "
                "that cannot be decoded: few, but drawn often, as of a part of a mixture with a large weight:\n"
                f"{first_of(list(self.paths.items()))}\n{self._advice()}"
            )

    def _most_replaced(self) -> float:
        share = math.ceil(self.max_bad_fraction * self.dataset_size) / self.dataset_size
        expected = share * max(self._samples, FIRST_LOOK)
        return expected + 4 * math.sqrt(expected)

    def _advice(self) -> str:
        return f"Repair or remove them, or raise data.max_bad_fraction (now {self.max_bad_fraction})"

    @property
    def seen(self) -> int:
        """Different tiles seen so far; samples do not repeat within an epoch."""
        return min(self._samples, self.dataset_size)

    @property
    def allowed(self) -> int:
        """Bad tiles tolerated at this point."""
        return math.ceil(self.max_bad_fraction * max(self.seen, min(self.dataset_size, FIRST_LOOK)))

    def _message(self) -> str:
        count = len(self.paths)
        seen = max(self.seen, count)
        return (
            f"{count} tiles cannot be decoded, {count / seen:.1%} of the {seen} tiles seen "
            f"({self.allowed} are tolerated so far):\n{first_of(list(self.paths.items()))}\n"
            f"{self._advice()}"
        )


def first_of(bad: Sequence[tuple[str, str]]) -> str:
    """A line for each of the first five of (path, reason), and how many more there are."""
    more = [f"  and {len(bad) - NAMED} more"] if len(bad) > NAMED else []
    return "\n".join([*(f"  {path}: {reason}" for path, reason in bad[:NAMED]), *more])
