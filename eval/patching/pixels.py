"""Where the patches' pixels go: into the coordinate file, into a tar shard, or into JPEG files."""

import io
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import cv2
import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinov2.utils.files import replacing

PIXEL_FORMATS = ("h5", "tar", "jpeg")
JPEG_QUALITY = 90


class PixelSink(Protocol):
    """Takes the patches of one slide, in any order."""

    def add(self, index: int, corner: NDArray[np.int64], pixels: NDArray[np.uint8]) -> None:
        """Take patch `index` at `corner` (x, y in level-0 px), (P, P, 3) uint8."""
        ...


class H5Sink:
    """`imgs` (N, P, P, 3) as CLAM has it, and `img`, the same under hest-bench's name, in an open coordinate file."""

    def __init__(self, file: h5py.File, count: int, side: int) -> None:
        self._images: Any = file.create_dataset("imgs", (count, side, side, 3), "u1", chunks=(1, side, side, 3))
        file["img"] = self._images  # a second name for the same data

    def add(self, index: int, corner: NDArray[np.int64], pixels: NDArray[np.uint8]) -> None:
        """See `PixelSink.add`."""
        self._images[index] = pixels


class _TarSink:
    def __init__(self, tar: tarfile.TarFile, name: str) -> None:
        self._tar, self._name = tar, name

    def add(self, index: int, corner: NDArray[np.int64], pixels: NDArray[np.uint8]) -> None:
        data = _jpeg(pixels)
        entry = tarfile.TarInfo(f"{self._name}_{corner[0]}_{corner[1]}.jpg")
        entry.size = len(data)
        self._tar.addfile(entry, io.BytesIO(data))


class _FolderSink:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, index: int, corner: NDArray[np.int64], pixels: NDArray[np.uint8]) -> None:
        (self._folder / f"{corner[0]}_{corner[1]}.jpg").write_bytes(_jpeg(pixels))


@contextmanager
def tar_sink(path: Path, name: str) -> Iterator[PixelSink]:
    """JPEGs `<name>_<x>_<y>.jpg` in a tar file, which appears whole or not at all."""
    with replacing(path) as temporary, tarfile.open(temporary, "w") as tar:
        yield _TarSink(tar, name)


@contextmanager
def folder_sink(folder: Path) -> Iterator[PixelSink]:
    """JPEGs `<x>_<y>.jpg` in a folder that does not exist yet, which appears whole or not at all."""
    remove_partial(folder)
    temporary = _partial(folder)
    temporary.mkdir(parents=True)
    try:
        yield _FolderSink(temporary)
        temporary.rename(folder)
    finally:
        remove_partial(folder)


def remove_partial(folder: Path) -> None:
    """Remove what a killed process has left of a folder of `folder_sink`."""
    shutil.rmtree(_partial(folder), ignore_errors=True)


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.tmp")


def is_blank(pixels: NDArray[np.uint8], white_thresh: float, black_thresh: float) -> bool:
    """Whether a patch is white (mean saturation below a threshold) or black (mean of every colour), as CLAM has it."""
    saturation = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)[..., 1]
    return bool(saturation.mean() < white_thresh or (pixels.mean(axis=(0, 1)) < black_thresh).all())


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
