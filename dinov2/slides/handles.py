"""A bounded number of open slides: each holds a file handle and a cache of tiles."""

import os
from collections import OrderedDict
from pathlib import Path

from dinov2.slides.open import open_slide
from dinov2.slides.openslide_reader import OpenSlideReader
from dinov2.slides.reader import SlideReader

IN_MEMORY = 16


class OpenSlides:
    """Opens slides when first asked for and closes those not used for longest.

    Of slides that OpenSlide does not read at most `IN_MEMORY` are open at once, whatever the limit: each keeps tiles of
    its own in memory, or all its pixels. The others share one cache, see `OpenSlideReader`.

    Open slides stay behind where it is pickled or the process forks: two processes cannot share a file's position.

    Args:
        limit: slides open at once.
    """

    def __init__(self, limit: int = 16) -> None:
        self.limit = limit
        self._open: OrderedDict[Path, SlideReader] = OrderedDict()
        self._process = os.getpid()

    def get(self, path: Path) -> SlideReader:
        """Return the open slide, valid until `limit` others have been asked for; raises `SlideError`."""
        if self._process != os.getpid():
            self._open, self._process = OrderedDict(), os.getpid()
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        while len(self._open) >= self.limit:
            self._open.popitem(last=False)[1].close()
        slide = open_slide(path)
        if not isinstance(slide, OpenSlideReader):
            held = [other for other, reader in self._open.items() if not isinstance(reader, OpenSlideReader)]
            for other in held[: max(len(held) - IN_MEMORY + 1, 0)]:
                self._open.pop(other).close()
        self._open[path] = slide
        return slide

    def __len__(self) -> int:
        return len(self._open)

    def close(self) -> None:
        """Close all."""
        while self._open:
            self._open.popitem()[1].close()

    def __getstate__(self) -> dict[str, object]:
        return {"limit": self.limit, "_open": OrderedDict(), "_process": 0}
