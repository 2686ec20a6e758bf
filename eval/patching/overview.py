"""The picture by which a person checks a slide: thumbnail, contours (green), holes (blue), patches (red)."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinov2.slides.coordinates import Coordinates
from dinov2.slides.reader import SlideReader
from dinov2.utils.files import replacing
from eval.patching.segmentation import Tissue
from eval.patching.thumbnail import level_nearest, reduced_image

GREEN, BLUE, RED = (0, 160, 0), (0, 0, 255), (255, 0, 0)
MAX_PIXELS = 2**21


def draw_overview(
    slide: SlideReader, tissue: Tissue, coordinates: Coordinates, vis_level: int, line_thickness: int
) -> NDArray[np.uint8]:
    """Return the picture (H, W, 3), of at most `MAX_PIXELS` px.

    Args:
        slide: the open slide.
        tissue: its contours.
        coordinates: its patches.
        vis_level: level to draw on; the nearest to a downsample of 64 where it is negative or does not exist.
        line_thickness: of the contours, level-0 px; in the picture at least 1 px and at most 1/300 of its side.
    """
    exists = 0 <= vis_level < len(slide.level_dimensions)
    picture = np.ascontiguousarray(reduced_image(slide, vis_level if exists else level_nearest(slide), MAX_PIXELS))
    scale = np.array(picture.shape[1::-1]) / np.array(slide.level_dimensions[0])
    patches = picture.copy()
    side = coordinates.geometry.patch_size_level0
    for corner in coordinates.coords:
        first, last = (corner * scale).astype(int).tolist(), ((corner + side) * scale).astype(int).tolist()
        cv2.rectangle(patches, first, last, RED, 1)
    picture = np.asarray(cv2.addWeighted(picture, 0.4, patches, 0.6, 0), dtype=np.uint8)
    thickness = max(1, min(int(line_thickness * float(scale.mean())), max(picture.shape) // 300))
    for contour, holes in zip(tissue.contours, tissue.holes, strict=True):
        cv2.drawContours(picture, [(contour * scale).astype(np.int32)], -1, GREEN, thickness)
        cv2.drawContours(picture, [(hole * scale).astype(np.int32) for hole in holes], -1, BLUE, thickness)
    return picture


def write_overview(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a JPEG, whole or not at all."""
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="JPEG", quality=85)
