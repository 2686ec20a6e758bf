"""Damage that a listing has found, and the rule by which it stops a run before the first step.

A bad tile is one of many and is met while loading; a container that is cut off may have lost any number of tiles that
nobody ever asks for. So containers are counted as such, when a data set is opened.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from dinov2.data.datasets.base import Mixture, TileDataset
from dinov2.data.errors import TooManyBadTilesError
from dinov2.data.skipped import DAMAGED


@dataclass(frozen=True)
class Damage:
    """What a listing found to be damaged.

    Attributes:
        what: the data set's string, for messages.
        unit: what is counted, such as shards.
        count: damaged ones.
        of: how many there are in all.
        first: some of them, with the reason.
        tiles: whether each stands for a single tile.
    """

    what: str
    unit: str
    count: int
    of: int
    first: tuple[str, ...]
    tiles: bool = False

    @classmethod
    def from_facts(cls, what: str, unit: str, good: int, facts: Mapping[str, Any], tiles: bool = False) -> "Damage":
        """Read the facts of an `IndexTable`, if it has any; `good` counts what is not among the damaged."""
        found = facts.get(DAMAGED, {"count": 0, "first": []})
        return cls(what, unit, found["count"], good + found["count"], tuple(found["first"]), tiles)

    def allowed(self, max_bad_fraction: float) -> int:
        """Damaged ones that a fraction tolerates: rounded down, but for single tiles up, as by `BadTileMonitor`."""
        return (math.ceil if self.tiles else math.floor)(max_bad_fraction * self.of)


@runtime_checkable
class Listed(Protocol):
    """A data set whose listing looks for damage."""

    damage: list[Damage]


def refuse_damage(dataset: TileDataset, max_bad_fraction: float) -> None:
    """Check a data set, and the parts of a mixture each by itself, against the rule.

    The rule: of the shards of `Tar`, of the files of `H5`, and of the files that `Folder` and `H5` list, links that
    lead nowhere included, no larger share than `max_bad_fraction` may be damaged; of the files of `Folder`, which are
    one tile each, one may be where the fraction is not 0.

    Raises:
        TooManyBadTilesError: the rule is broken; names some of what is damaged.
    """
    for damage in _damage(dataset):
        allowed = damage.allowed(max_bad_fraction)
        if damage.count > allowed:
            named = "\n".join(f"  {entry}" for entry in damage.first)
            more = f"\n  and {damage.count - len(damage.first)} more" if damage.count > len(damage.first) else ""
            raise TooManyBadTilesError(
                f"{damage.what}: {damage.count} of {damage.of} {damage.unit} are damaged ({allowed} are tolerated):\n"
                f"{named}{more}\nRepair or remove them, or raise data.max_bad_fraction (now {max_bad_fraction})"
            )


def _damage(dataset: TileDataset) -> Iterator[Damage]:
    if isinstance(dataset, Listed):
        yield from dataset.damage
    if isinstance(dataset, Mixture):
        for part in dataset.parts:
            yield from _damage(part)
