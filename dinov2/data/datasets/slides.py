"""Patches of whole slides, read from the slides themselves at the places that coordinate files name."""

import resource
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dinov2.data.datasets.registry import register_dataset
from dinov2.data.datasets.slides_index import index_slides
from dinov2.data.errors import BadTileError, DatasetError
from dinov2.data.index_cache import kept_or_listed
from dinov2.data.index_names import name_at
from dinov2.slides.coordinates import Geometry, read_patch
from dinov2.slides.errors import SlideError
from dinov2.slides.handles import OpenSlides
from dinov2.slides.open import slide_name

_FILES_SHARE = 4  # at most this part of the files that a process may open are slides


@dataclass(frozen=True)
class _Entry:
    """One slide: where it is, and how its patches are read."""

    path: Path
    geometry: Geometry


@register_dataset("Slides")
class Slides:
    """Patches of the slides of a manifest, in its order; implements `TileDataset`, `NamedTiles` and `PlacedTiles`.

    Args:
        manifest: CSV with a column `slide` (or `slide_id`, `wsi`, `path`): files, absolute or relative to the
            manifest's folder.
        coords: folder of coordinate files, `<slide>.h5` of `python -m eval.patches` or CLAM, `<slide>_patches.h5` of
            TRIDENT, there or in its folder `patches`.
        open: slides that a process keeps open at once, by default 256, of which each takes a file and the memory of its
            directory; never more than a quarter of the files that the system lets a process open (`ulimit -n`), nor
            more than 16 that OpenSlide cannot read (OME-TIFF, PNG, JPEG). Samples come from all slides in turn: with
            fewer than there are, most of them wait for a slide to be opened.
        refresh: `auto` (default), `always` or `never`: when to open all slides anew, see `index_cache`.

    Raises:
        DatasetError: `coords` is no folder, see `index_slides`, or there is no patch at all.
    """

    def __init__(self, manifest: str, coords: str, open: str = "256", refresh: str = "auto") -> None:
        path, folder = (Path(name).expanduser().absolute() for name in (manifest, coords))
        if not folder.is_dir():
            raise DatasetError(f"Slides:coords={coords}: {folder} is no folder. Make it: python -m eval.patches.")
        if not open.isdecimal() or int(open) < 1:
            raise DatasetError(f"Slides:open={open}: it must be a whole number, 1 or more.")
        self._table = kept_or_listed(
            "Slides",
            (str(path), str(folder)),
            refresh,
            lambda table: len(table.columns["x"]),
            lambda: index_slides(path, folder),
        )
        columns = self._table.columns
        self._entries = [
            _Entry(Path(name_at(columns["names"], columns["bounds"], number)), Geometry(*values))
            for number, values in enumerate(self._table.facts["geometry"])
        ]
        self._ends = columns["ends"].tolist()
        if not self._ends[-1]:
            raise DatasetError(f"Slides:manifest={manifest}: none of its {len(self._entries)} slides has a patch.")
        files_allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._slides = OpenSlides(max(min(int(open), files_allowed // _FILES_SHARE), 1))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, index: int) -> tuple[_Entry, int, int]:
        """Slide and corner (x, y) of patch `index`; raises `IndexError`."""
        if not 0 <= index < len(self):
            raise IndexError(f"tile {index} is not in 0 .. {len(self) - 1}")
        columns = self._table.columns
        return self._entries[bisect_right(self._ends, index)], int(columns["x"][index]), int(columns["y"][index])

    def path(self, index: int) -> str:
        """Slide, and the patch's corner in level-0 px: `a.svs at (512, 1024)`."""
        entry, x, y = self._locate(index)
        return f"{entry.path} at ({x}, {y})"

    def name(self, index: int) -> str:
        """Slide and corner of tile `index` in level-0 px: `a/512_1024`."""
        entry, x, y = self._locate(index)
        return f"{slide_name(entry.path)}/{x}_{y}"

    def place(self, index: int) -> tuple[int, int]:
        """Corner (x, y) of tile `index` in level-0 px."""
        return self._locate(index)[1:]

    def decode(self, index: int) -> Tensor:
        """Tile `index` as (3, H, W) uint8 RGB; raises `BadTileError`."""
        entry, x, y = self._locate(index)
        try:
            pixels = read_patch(self._slides.get(entry.path), entry.geometry, x, y)  # (H, W, 3)
        except SlideError as error:
            raise BadTileError(self.path(index), str(error)) from error
        except Exception as error:  # a damaged slide makes libraries raise nearly anything
            raise BadTileError(self.path(index), f"{type(error).__name__}: {error}") from error
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
