"""Plain images as slides of one level: PNG and JPEG, read into memory whole."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinov2.slides.errors import SlideError
from dinov2.slides.reader import Size, paste_region

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
# 3 bytes a px are held in memory; sections at full resolution have about 10^8 px.
MAX_PIXELS = 2**29
MM_PER_INCH = 25.4


class ImageReader:
    """Implements `SlideReader` for one image.

    Raises:
        SlideError: not an 8-bit image, damaged, or of more than `MAX_PIXELS`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is our own
                with _no_pillow_limit(), Image.open(path) as image:
                    self._check(image)
                    self._pixels: NDArray[np.uint8] = np.asarray(image.convert("RGB"))  # (H, W, 3)
                    dpi = image.info.get("dpi")
        except SlideError:
            raise
        except Exception as error:  # damaged files make decoders raise nearly anything
            raise SlideError(f"{path}: not a readable image: {type(error).__name__}: {error}") from error
        size: Size = (self._pixels.shape[1], self._pixels.shape[0])
        self.level_dimensions: tuple[Size, ...] = (size,)
        self.level_downsamples: tuple[float, ...] = (1.0,)
        self.tile_size: Size = size
        self.properties: Mapping[str, str] = {}
        if dpi and all(value > 0 for value in dpi):
            x, y = (1000 * MM_PER_INCH / float(value) for value in dpi)
            self.properties = {"openslide.mpp-x": repr(x), "openslide.mpp-y": repr(y)}

    def _check(self, image: Image.Image) -> None:
        if image.width * image.height > MAX_PIXELS:
            raise SlideError(
                f"{self.path}: {image.width} x {image.height} px are too many for a plain image (at most "
                f"{MAX_PIXELS:,}). Convert it to a tiled TIFF, e.g. vips tiffsave IN OUT.tif --tile --pyramid."
            )
        if image.mode.startswith("I") or image.mode == "F":
            raise SlideError(f"{self.path}: more than 8 bits a channel (mode {image.mode}). Convert it to 8-bit RGB.")

    def read_region(self, location: Size, level: int, size: Size) -> NDArray[np.uint8]:
        """See `SlideReader.read_region`; there is level 0 only."""
        if level != 0:
            raise SlideError(f"{self.path}: level {level} does not exist; a plain image has level 0 only.")
        return paste_region(self._pixels, location[0], location[1], size)

    def close(self) -> None:
        """Free the memory."""
        self._pixels = np.zeros((0, 0, 3), dtype=np.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _no_pillow_limit:  # noqa: N801 -- used like a function
    """Lift Pillow's limit of pixels, which is one for the whole process, for a block."""

    def __enter__(self) -> None:
        self._before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None

    def __exit__(self, *exception: object) -> None:
        Image.MAX_IMAGE_PIXELS = self._before
