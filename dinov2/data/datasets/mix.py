"""Weighted mixtures of data sets."""

import bisect
import os
from itertools import accumulate

from torch import Tensor

from dinov2.data.datasets.base import TileDataset
from dinov2.data.datasets.mix_config import read_mixture
from dinov2.data.datasets.registry import make_dataset, register_dataset
from dinov2.data.errors import DatasetError

_OPENING: list[str] = []  # mixtures whose parts are being opened


@register_dataset("Mix")
class Mix:
    """Several data sets, of which each gives a fixed share of the samples; implements `TileDataset` and `Mixture`.

    The file says which, in YAML:

        datasets:
          - {spec: "Folder:root=/data/breast", weight: 3}
          - {spec: "Tar:shards=/data/colon-{000..099}.tar", weight: 1}

    Weights are shares of the samples, whatever the sizes: here three of four samples are from the first. Each part is
    gone through in its own epochs, see `samplers.MixedStream`. Without any weight the shares are the numbers of tiles,
    so that every tile is as likely as any other, up to a rounding: a part gives a whole number of every 65,536 samples,
    at least one. A part may be a mixture itself. The same data twice are an error: the weight says how often to draw
    from them. A folder within another of the same kind is a warning.

    A run has one `crops.normalize`, for all parts: take it from `python -m dinov2.data.stats` of the mixture, which
    draws by the weights.

    Args:
        config: the file.

    Raises:
        DatasetError: see `read_mixture`, the mixture contains itself, and what the parts object to.
    """

    def __init__(self, config: str) -> None:
        specs, weights = read_mixture(config)
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
