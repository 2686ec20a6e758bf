"""Weighted mixtures of data sets."""

import bisect
import os
import sys
from itertools import accumulate
from typing import Any

import yaml
from torch import Tensor

from dinov2.data.datasets.base import TileDataset
from dinov2.data.datasets.registry import make_dataset, register_dataset
from dinov2.data.errors import DatasetError
from dinov2.utils.suggest import did_you_mean

EXAMPLE = "datasets: [{spec: 'Folder:root=a', weight: 2}, {spec: 'Tar:shards=b.tar', weight: 1}]"

_OPENING: list[str] = []  # mixtures whose parts are being opened


@register_dataset("Mix")
class Mix:
    """Several data sets, of which each gives a fixed share of the samples; implements `TileDataset` and `Mixture`.

    The file says which, in YAML:

        datasets:
          - {spec: "Folder:root=/data/breast", weight: 3}
          - {spec: "Tar:shards=/data/colon-{000..099}.tar", weight: 1}

    Weights are shares of the samples, whatever the sizes: here three of four samples are from the first. Each part is
    gone through in its own epochs, see `samplers.MixedStream`. Without any weight every tile is as likely as any other.
    A part may be a mixture itself. The same spec twice is an error: its weight says how often to draw from it.

    Args:
        config: the file.

    Raises:
        DatasetError: no such file, no valid YAML, an unknown key, no data set, a repeated one, or weights that are not
            positive numbers; and what the parts object to.
    """

    def __init__(self, config: str) -> None:
        specs, weights = _read(config)
        path = os.path.realpath(os.path.expanduser(config))
        if path in _OPENING:
            raise DatasetError(f"Mix:{config} contains itself")
        _OPENING.append(path)
        try:
            self.parts: list[TileDataset] = [make_dataset(spec) for spec in specs]
        finally:
            _OPENING.remove(path)
        sizes = [len(part) for part in self.parts]
        self.weights: list[float] = weights or [float(size) for size in sizes]
        self._starts = [0, *accumulate(sizes)]

    def __len__(self) -> int:
        return self._starts[-1]

    def locate(self, index: int) -> tuple[TileDataset, int]:
        """Part and index in it of tile `index`.

        Raises:
            IndexError: there is no such tile.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"tile {index} is not in 0 .. {len(self) - 1}")
        part = bisect.bisect_right(self._starts, index) - 1
        return self.parts[part], index - self._starts[part]

    def path(self, index: int) -> str:
        """Where tile `index` comes from."""
        part, place = self.locate(index)
        return part.path(place)

    def decode(self, index: int) -> Tensor:
        """Tile `index` as uint8 (3, H, W); raises `BadTileError`."""
        part, place = self.locate(index)
        return part.decode(place)


def _read(config: str) -> tuple[list[str], list[float]]:
    """Specs and weights (none, or one each) of a mixture's file."""
    try:
        with open(os.path.expanduser(config), encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: text, dates, long numbers
        raise DatasetError(f"Mix:{config} cannot be read: {error}") from error
    entries = content.get("datasets") if isinstance(content, dict) and set(content) == {"datasets"} else None
    if not isinstance(entries, list):
        raise DatasetError(f"Mix:{config} must hold the key 'datasets', a list, and nothing else: {EXAMPLE}")
    if not entries:
        raise DatasetError(f"Mix:{config} is an empty mixture; write {EXAMPLE}")
    specs = [_spec(config, entry) for entry in entries]
    for number, spec in enumerate(specs):
        if spec in specs[:number]:
            raise DatasetError(f"Mix:{config} names {spec!r} twice; give it once, with the weight of both")
    given = [entry["weight"] for entry in entries if "weight" in entry]
    if given and len(given) < len(entries):
        raise DatasetError(
            f"Mix:{config} has {len(given)} weights for {len(entries)} data sets; give each one, or none"
        )
    return specs, [_weight(config, spec, weight) for spec, weight in zip(specs, given, strict=False)]


def _spec(config: str, entry: Any) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("spec"), str):
        raise DatasetError(f"Mix:{config}: {entry!r} is no data set; write {EXAMPLE}")
    for key in entry:
        if key not in ("spec", "weight"):
            raise DatasetError(
                f"Mix:{config}: a data set has no key {key!r}{did_you_mean(str(key), ['spec', 'weight'])}"
            )
    return entry["spec"]


def _weight(config: str, spec: str, weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= sys.float_info.max:
        raise DatasetError(
            f"Mix:{config}: the weight of {spec!r} is {weight!r}; it must be a positive number (leave a data set out "
            "instead of giving it 0)"
        )
    return float(weight)
