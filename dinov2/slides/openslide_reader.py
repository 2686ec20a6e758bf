"""Slides that OpenSlide reads (https://openslide.org/formats): SVS, NDPI, MRXS, SCN, generic tiled TIFF, ..."""

import contextlib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dinov2.slides.errors import SlideError
from dinov2.slides.reader import Size

CACHE_BYTES = 2**26  # of decoded tiles, for all slides of a process; OpenSlide's own is 32 MiB a slide


class OpenSlideReader:
    """Implements `SlideReader` by the library OpenSlide; all slides of a process share one cache of decoded tiles.

    A slide is opened anew after a read that failed: OpenSlide keeps an error for good, and answers every later call
    with it (https://openslide.org/api/openslide_8h.html, openslide_get_error).

    Raises:
        SlideError: OpenSlide is not installed, or refuses the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        slide = self._slide = _open(path)
        self.level_dimensions: tuple[Size, ...] = slide.level_dimensions
        self.level_downsamples: tuple[float, ...] = slide.level_downsamples
        self.properties: Mapping[str, str] = dict(slide.properties)
        width, height = (self.properties.get(f"openslide.level[0].tile-{side}", "256") for side in ("width", "height"))
        self.tile_size: Size = (int(width), int(height))

    def read_region(self, location: Size, level: int, size: Size) -> NDArray[np.uint8]:
        """See `SlideReader.read_region`."""
        import openslide

        if self._slide is None:
            self._slide = _open(self.path)
        try:
            image = self._slide.read_region(location, level, size)  # RGBA
        except openslide.OpenSlideError as error:
            self.close()
            raise SlideError(
                f"{self.path}: level {level}, {size[0]} x {size[1]} px at {location} cannot be decoded: {error}. "
                "The file is damaged or cut off: copy it again."
            ) from error
        return np.asarray(image)[..., :3]  # (H, W, 3); colours outside the slide are 0

    def close(self) -> None:
        """Free the file."""
        if self._slide is not None:
            self._slide.close()
        self._slide = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _open(path: Path) -> Any:
    """Open a slide with the cache of this process."""
    try:
        import openslide
    except (ImportError, OSError) as error:
        raise SlideError(
            f"{path}: OpenSlide is not installed ({error}); pip install openslide-python openslide-bin"
        ) from error
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise SlideError(f"{path}: OpenSlide: {error or 'unsupported or missing file'}") from error
    with contextlib.suppress(openslide.OpenSlideVersionError):  # libraries before 4.0 cannot share
        slide.set_cache(_shared_cache(os.getpid()))
    return slide


@cache
def _shared_cache(process: int) -> Any:
    """The cache of a process; a forked one must not use its parent's, whose lock may be held."""
    import openslide

    del process
    return openslide.OpenSlideCache(CACHE_BYTES)
