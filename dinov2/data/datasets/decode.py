"""One image file to one RGB image, with every failure turned into a `BadTileError`."""

from PIL import Image

from dinov2.data.errors import BadTileError

# Modes with more than 8 bits a channel: converting them to RGB clips or wraps silently.
_DEEP_MODES = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}


def decode_file(path: str) -> Image.Image:
    """Read an 8-bit image file (PNG, JPEG, TIFF, ...) as RGB; the first page of a file of several.

    Palette, grey, bilevel, CMYK and YCbCr images are converted; an alpha channel is dropped, not composited.

    Raises:
        BadTileError: the file is missing, unreadable, truncated, not an image, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode in _DEEP_MODES:
                raise BadTileError(path, f"mode {image.mode}: more than 8 bits a channel; convert it to 8-bit RGB")
            if image.mode == "P" and "transparency" in image.info:
                return image.convert("RGBA").convert("RGB")  # straight to RGB, Pillow warns
            return image.convert("RGB")
    except BadTileError:
        raise
    except Exception as error:  # damaged files make decoders raise nearly anything (SyntaxError, struct.error, ...)
        raise BadTileError(path, f"{type(error).__name__}: {error}") from error
