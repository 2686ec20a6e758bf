"""One image file to one uint8 tensor, with every failure turned into a `BadTileError`.

JPEG in grey or YCbCr is decoded by simplejpeg (libjpeg-turbo into NumPy), which gives Pillow's values and is the
fastest of the decoders in `scripts/bench/data_index.py`. Pillow decodes all else, and whatever simplejpeg refuses, so
that there is one opinion on what a good file is.
"""

import io

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dinov2.data.errors import BadTileError

MAX_PIXELS = 2**26  # 8,192 x 8,192 px, 200 MB as RGB
JPEG_SIGNATURE = b"\xff\xd8\xff"
# Modes with more than 8 bits a channel: converting them to RGB clips or wraps silently.
_DEEP_MODES = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}


def decode_file(path: str) -> Tensor:
    """Read an image file, see `decode_bytes`; raises `BadTileError`, also for a file that is missing."""
    return decode_bytes(read_file(path), path)


def read_file(path: str) -> bytes:
    """The content of a file; raises `BadTileError` where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadTileError(path, f"{type(error).__name__}: {error}") from error


def decode_bytes(data: bytes, path: str) -> Tensor:
    """Decode an 8-bit image file (PNG, JPEG, TIFF, WebP, ...) as RGB; the first page of a file of several.

    Palette, grey, bilevel, CMYK and YCbCr images are converted; an alpha channel is dropped, not composited. An
    orientation in the EXIF data is not applied. Any size from 1 x 1 to 2**26 pixels is a tile.

    Args:
        data: content of the file.
        path: its name, for messages.

    Returns:
        uint8 (3, H, W), contiguous.

    Raises:
        BadTileError: empty, truncated, no image, too large, or more than 8 bits a channel.
    """
    if not data:
        raise BadTileError(path, "an empty file")
    try:
        tile = _fast_jpeg(data, path) if data.startswith(JPEG_SIGNATURE) else None
        return pixels_to_tensor(_pillow(data, path)) if tile is None else tile
    except BadTileError:
        raise
    except Exception as error:  # damaged files make decoders raise nearly anything (SyntaxError, struct.error, ...)
        reason = str(error).partition(" <_io.")[0]  # Pillow names the buffer and its address
        raise BadTileError(path, f"{type(error).__name__}: {reason}") from error


def pixels_to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Pixels (H, W, 3) as a contiguous tensor (3, H, W).

    NumPy moves the channels in half the time of torch's `contiguous`.
    """
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy(order="C"))


def _fast_jpeg(data: bytes, path: str) -> Tensor | None:
    """The image (3, H, W) by simplejpeg, None where Pillow has to look at it."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height, path)
        if colours not in ("YCbCr", "Gray"):
            return None
        # Four bytes a pixel, so that the channels come apart by shifting whole words: faster than moving single bytes.
        words = simplejpeg.decode_jpeg(data, "RGBX").view("<u4")[..., 0]  # (H, W)
    except ValueError:  # damaged, or of a rare kind
        return None
    planes = np.empty((3, height, width), dtype=np.uint8)
    for number, plane in enumerate(planes):
        np.copyto(plane, words >> np.uint32(8 * number), casting="unsafe")
    return torch.from_numpy(planes)


def _pillow(data: bytes, path: str) -> NDArray[np.uint8]:
    """The image (H, W, 3) by Pillow."""
    with Image.open(io.BytesIO(data)) as image:
        _check_size(*image.size, path)
        stored = ",".join(str(tile[3]) for tile in image.tile)  # how the file keeps pixels: "RGB;16B" opens as RGB
        if image.mode in _DEEP_MODES or ";16" in stored:
            raise BadTileError(path, f"mode {image.mode}: more than 8 bits a channel; convert it to 8-bit RGB")
        if image.mode == "P" and "transparency" in image.info:
            return np.asarray(image.convert("RGBA").convert("RGB"))  # straight to RGB, Pillow warns
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _check_size(width: int, height: int, path: str) -> None:
    if width * height > MAX_PIXELS:
        raise BadTileError(
            path, f"{width} x {height} px: more than {MAX_PIXELS:,} pixels is no tile; cut it into tiles"
        )
