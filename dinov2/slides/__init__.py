"""Whole slides: readers, resolution, and coordinate files that CLAM and TRIDENT read as well.

Needs the extra `slides` (openslide-python, openslide-bin, tifffile, imagecodecs), which is imported at first use.
"""

from dinov2.slides.coordinates import Coordinates
from dinov2.slides.coordinates_file import read_coordinates, write_coordinates
from dinov2.slides.errors import CoordinatesError, SlideError
from dinov2.slides.open import open_slide
from dinov2.slides.reader import SlideReader

__all__ = [
    "Coordinates",
    "CoordinatesError",
    "SlideError",
    "SlideReader",
    "open_slide",
    "read_coordinates",
    "write_coordinates",
]
