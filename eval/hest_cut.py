"""Cuts the patch of every spot from a slide: a square of a fixed width in microns around the spot, resized.

Source of the layout: HEST-1k (`patches/<id>.h5`: 224 x 224 px at 0.5 um/px, centred on the spots).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from dinov2.utils.files import replacing
from eval.errors import EvalError, first_few
from eval.hest_data import open_h5

CUT_MPP, CUT_PX = "cut_mpp", "cut_px"  # attributes of the files written here


def pixel_size(metadata: Path) -> float:
    """Microns a pixel of the slide, from HEST-1k's `metadata/<id>.json`.

    Raises:
        EvalError: no such file, or no usable `pixel_size_um_estimated` in it.
    """
    if not metadata.is_file():
        raise EvalError(f"{metadata}: missing; it says how large a pixel of the slide is. Download the metadata too.")
    try:
        found: Any = json.loads(metadata.read_text())["pixel_size_um_estimated"]
        size = float(found)
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise EvalError(f"{metadata}: no number pixel_size_um_estimated in it ({error}).") from error
    if not 0 < size < 20:
        raise EvalError(f"{metadata}: a pixel of {size:g} um; it must be above 0 and below 20. Correct the file.")
    return size


def cut_patches(
    slide: Path,
    expression: Path,
    out: Path,
    *,
    mpp0: float,
    mpp: float = 0.5,
    side: int = 224,
    bar: "tqdm | None" = None,
) -> tuple[int, int]:
    """Write `out` with `img` (N, side, side, 3), `barcode` and `coords` (centres in slide pixels).

    Args:
        slide: an image that OpenSlide reads.
        expression: h5ad whose `obsm["spatial"]` are the spots' centres (x, y) in slide pixels.
        out: patches file to write.
        mpp0: microns a pixel of the slide.
        mpp: microns a pixel of the patches.
        side: width of a patch in its own pixels.
        bar: advanced by one for every spot.

    Returns:
        Patches written, and spots left out because their centre lies outside the slide. What a patch has outside the
        slide is white.

    Raises:
        EvalError: no OpenSlide, an unreadable or damaged slide, no coordinates, or no spot on the slide.
    """
    try:
        import openslide
    except ImportError as error:
        raise EvalError("cutting patches needs OpenSlide: pip install openslide-python openslide-bin") from error
    barcodes, centres = _spots(expression)
    try:
        image = openslide.OpenSlide(str(slide))
    except (openslide.OpenSlideError, OSError) as error:
        raise EvalError(f"{slide}: not a slide that OpenSlide reads ({error}). Download it again.") from error
    width, height = image.dimensions
    inside = (centres >= 0).all(axis=1) & (centres < (width, height)).all(axis=1)
    if not inside.any():
        raise EvalError(
            f"{expression}: none of {len(centres)} spots lies on the slide of {width} x {height} px, e.g. "
            f"{centres[0].tolist()}. Are they of another image, or in another unit?"
        )
    size = max(1, round(side * mpp / mpp0))  # width of a patch in slide pixels
    with replacing(out) as temporary, h5py.File(temporary, "w") as file:
        count = int(inside.sum())
        pixels = file.create_dataset(
            "img", (count, side, side, 3), "uint8", chunks=(1, side, side, 3), compression="lzf"
        )
        for i, centre in enumerate(centres[inside]):
            corner = np.round(centre - size / 2).astype(int)
            try:
                region = image.read_region((int(corner[0]), int(corner[1])), 0, (size, size))
            except openslide.OpenSlideError as error:  # a damaged tile shows only here
                raise EvalError(f"{slide}: damaged around {centre.tolist()} ({error}). Download it again.") from error
            white = Image.new("RGB", region.size, "white")
            white.paste(region, mask=region.getchannel("A"))
            pixels[i] = np.asarray(white.resize((side, side), Image.Resampling.BICUBIC))
            if bar is not None:
                bar.update()
        file["barcode"] = np.array(barcodes, dtype="S")[inside][:, None]
        file["coords"] = np.round(centres[inside]).astype(np.int64)
        file["coords"].attrs.update(pixel_size=mpp0, patch_size=size, patch_size_target=side)
        file.attrs.update({CUT_MPP: mpp, CUT_PX: side})
    image.close()
    return count, len(centres) - count


def cut_at(patches: Path) -> tuple[float, int] | None:
    """Microns a pixel and width of the patches of a file that `cut_patches` has written; None for any other file."""
    with open_h5(patches) as file:
        return (float(file.attrs[CUT_MPP]), int(file.attrs[CUT_PX])) if CUT_MPP in file.attrs else None


def _spots(expression: Path) -> tuple[Sequence[str], NDArray[np.float64]]:
    try:
        adata = anndata.read_h5ad(expression, backed="r")
    except Exception as error:  # anndata wraps errors of many libraries in types of its own
        raise EvalError(f"{expression}: not a readable h5ad file ({error}). Download it again.") from error
    try:
        if "spatial" not in adata.obsm:
            found = first_few(adata.obsm.keys())
            raise EvalError(f"{expression}: no obsm['spatial'], the spots' centres; found {found or 'nothing'}.")
        return adata.obs_names.astype(str).tolist(), np.asarray(adata.obsm["spatial"], dtype=np.float64)[:, :2]
    finally:
        adata.file.close()
