"""Opening a slide with the reader that can: OpenSlide first, then tifffile; Pillow for plain images."""

from pathlib import Path

from dinov2.slides.errors import SlideError
from dinov2.slides.image_reader import IMAGE_SUFFIXES, ImageReader
from dinov2.slides.openslide_reader import OpenSlideReader
from dinov2.slides.reader import SlideReader
from dinov2.slides.tiff_reader import TIFF_SUFFIXES, TiffReader

OPENSLIDE_SUFFIXES = (".svs", ".svslide", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".bif")
_MAYBE_TIFF = (".svs", ".scn", ".ndpi", *TIFF_SUFFIXES)
SLIDE_SUFFIXES = tuple(dict.fromkeys((*OPENSLIDE_SUFFIXES, *TIFF_SUFFIXES, *IMAGE_SUFFIXES)))


def open_slide(path: str | Path) -> SlideReader:
    """Open a whole slide or a plain image.

    Args:
        path: SVS, NDPI, MRXS, SCN, generic tiled TIFF and what else OpenSlide reads; OME-TIFF and other TIFFs; PNG
            and JPEG.

    Raises:
        SlideError: the file is missing, or no reader can open it; the message has what each of them said.
    """
    path = Path(path)
    if not path.exists():
        raise SlideError(f"{path}: no such file. Check the path of the slide.")
    if path.is_dir():
        raise SlideError(f"{path}: a folder, not a slide. Give the slide's file.")
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return ImageReader(path)
    try:
        slide = OpenSlideReader(path)
    except SlideError as refused:
        return _by_tifffile(path, refused)
    if "<OME" not in slide.properties.get("tiff.ImageDescription", ""):
        return slide
    slide.close()  # OpenSlide takes an OME-TIFF for a generic one, without its levels and its resolution
    return TiffReader(path)


def _by_tifffile(path: Path, refused: SlideError) -> SlideReader:
    if path.suffix.lower() not in _MAYBE_TIFF:
        raise refused
    try:
        return TiffReader(path)
    except SlideError as error:
        said = str(error).removeprefix(f"{path}: ")
        raise SlideError(
            f"{refused}; {said}. Is it a slide, and was it copied whole? Compare its size with the original's."
        ) from error


def slide_name(path: str | Path) -> str:
    """Return the name under which a slide's files are written: the file's without its suffix, or `.ome.tiff`."""
    name = Path(path).name
    for suffix in (".ome.tiff", ".ome.tif"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(name).stem
