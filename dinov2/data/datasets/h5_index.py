"""Which HDF5 files hold tiles, and how many: HEST and CLAM keep pixels under `img`, others under `imgs`."""

from collections.abc import Sequence

import h5py
import numpy as np
from tqdm import tqdm

from dinov2.data.datasets.decode import MAX_PIXELS
from dinov2.data.errors import DatasetError
from dinov2.data.index_cache import Watched
from dinov2.data.index_table import IndexTable
from dinov2.data.skipped import DAMAGED, Skipped

PIXEL_KEYS = ("img", "imgs")
UNREADABLE = -1
MOST_TILES = 2**40  # a larger number is damage
SLOW = "slow to read"  # key in the facts, as of `Skipped`


def index_h5(paths: Sequence[str]) -> IndexTable:
    """Count the tiles of each file: columns `counts` (files,), -1 for a file that cannot be read, and `ends` (files,).

    A file that cannot be read has the place of one tile, which is a bad one, and is among the facts' damaged. One of
    which several tiles have to be decompressed to read one is among those that are slow.

    Raises:
        DatasetError: see `pixels`.
    """
    watched, damaged, slow = Watched(), Skipped(DAMAGED), Skipped(SLOW)
    counts = []
    for path in tqdm(paths, desc="looking into h5 files", unit=" files", delay=2, leave=False, disable=None):
        watched.add(path)
        try:
            with h5py.File(path, "r") as file:
                count, together = len(data := pixels(file, path)), _decoded_together(data)
            if count > MOST_TILES:
                raise OSError(f"{count} tiles")
            counts.append(count)
            if together > 1:
                slow.add(
                    path, f"{together} tiles a compressed chunk, decoded for each of them; dinov2.data.pack writes one"
                )
        except DatasetError:
            raise
        except Exception as error:  # a damaged file makes HDF5 raise OSError, RuntimeError, KeyError, ...
            counts.append(UNREADABLE)
            damaged.add(path, f"{type(error).__name__}: {error}")
    ends = np.cumsum([abs(count) for count in counts], dtype=np.int64)
    columns = {"counts": np.array(counts, dtype=np.int64), "ends": ends, **watched.columns()}
    return IndexTable(columns, {"kind": "H5", "files": list(paths), **damaged.facts(), **slow.facts()})


def _decoded_together(data: h5py.Dataset) -> int:
    """How many tiles have to be decompressed to read one."""
    compressed = data.id.get_create_plist().get_nfilters() > 0
    return min(data.chunks[0], len(data)) if compressed and data.chunks else 1


def pixels(file: h5py.File, path: str) -> h5py.Dataset:
    """The tiles of an open file: uint8 (N, H, W, 3).

    Raises:
        DatasetError: there are none, or they have another shape or type.
    """
    key = next((key for key in PIXEL_KEYS if key in file), None)
    if key is None:
        if "coords" in file:
            raise DatasetError(
                f"H5: {path} holds coordinates only, no pixels under 'img' or 'imgs'; to read its tiles from the "
                "slides themselves use Slides:manifest=slides.csv:coords=FOLDER"
            )
        raise DatasetError(
            f"H5: {path} has no pixels under 'img' or 'imgs'; it holds {', '.join(sorted(file)) or 'nothing'}"
        )
    if isinstance(file.get(key, getlink=True), h5py.ExternalLink):
        raise DatasetError(f"H5: {path}: {key!r} is a link to another file; give that file itself")
    data = file[key]
    if not isinstance(data, h5py.Dataset):
        raise DatasetError(f"H5: {path}: {key!r} is a group; it must be an array of tiles (N, H, W, 3)")
    if data.ndim != 4 or data.shape[-1] != 3 or data.dtype != np.uint8:
        raise DatasetError(f"H5: {path}: {key!r} is {data.dtype} {data.shape}; it must be uint8 (N, H, W, 3)")
    if data.shape[1] * data.shape[2] > MAX_PIXELS or not data.shape[1] * data.shape[2]:
        raise DatasetError(f"H5: {path}: tiles of {data.shape[1]} x {data.shape[2]} px; 1 to {MAX_PIXELS:,} pixels")
    return data
