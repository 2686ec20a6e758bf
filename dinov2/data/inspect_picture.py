"""The picture of `python -m dinov2.data.inspect`: in each row a tile with its boxes, its crops, and their masks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from dinov2.data.collate import N_GLOBAL, MultiCropBatch
from dinov2.data.crop_params import CropParams
from dinov2.data.samples import Sample
from dinov2.utils.schema import CropsSection

GAP = 6  # px between pictures
CAPTION = 14  # px
SHADE = 0.25  # of the brightness of a masked patch
GLOBAL_COLOUR, LOCAL_COLOUR = (0, 90, 255), (0, 150, 60)


def draw_grid(
    samples: Sequence[Sample], batch: MultiCropBatch, crops: CropsSection, grid: tuple[int, int]
) -> Image.Image:
    """Draw what the model sees of some tiles.

    Args:
        samples: B tiles with their parameters.
        batch: the crops and masks of the same samples.
        crops: sizes and normalisation of those.
        grid: rows and columns of patches in a global crop.

    Returns:
        An RGB picture of B rows: the tile with its boxes, global crops with masked patches darkened, local crops.
    """
    side = crops.global_crops_size
    rows = [_row(number, sample, batch, crops, grid) for number, sample in enumerate(samples)]
    width = max(row.width for row in rows)
    picture = Image.new("RGB", (width, CAPTION + len(rows) * (side + GAP)), "white")
    pen = ImageDraw.Draw(picture)
    for column, text in enumerate(("tile, boxes", "global 1", "global 2", "local")):
        pen.text((column * (side + GAP), 1), text, fill="black")
    for number, row in enumerate(rows):
        picture.paste(row, (0, CAPTION + number * (side + GAP)))
    return picture


def _row(number: int, sample: Sample, batch: MultiCropBatch, crops: CropsSection, grid: tuple[int, int]) -> Image.Image:
    side, small, count = crops.global_crops_size, crops.local_crops_size, len(batch.paths)
    pieces = [_tile_with_boxes(sample, side)]
    for crop in range(N_GLOBAL):
        row = crop * count + number
        pieces.append(_shaded(_pixels(batch.global_crops[row], crops), batch.masks[row].view(grid)))
    places = [(column * (side + GAP), 0) for column in range(len(pieces))]
    a_column = max(1, (side + GAP) // (small + GAP))  # local crops below one another
    for crop in range(crops.local_crops_number):
        pieces.append(to_pil_image(_pixels(batch.local_crops[crop * count + number], crops)))
        column, place = divmod(crop, a_column)
        places.append((3 * (side + GAP) + column * (small + GAP), place * (small + GAP)))
    picture = Image.new("RGB", (max(x + p.width for (x, _), p in zip(places, pieces, strict=True)), side), "white")
    for place_xy, piece in zip(places, pieces, strict=True):
        picture.paste(piece, place_xy)
    return picture


def _tile_with_boxes(sample: Sample, side: int) -> Image.Image:
    """The tile, fitted into a square, with the boxes of the global crops in blue and of the local ones in green."""
    assert sample.tile is not None
    tile = to_pil_image(sample.tile)
    scale = side / max(tile.size)
    tile = tile.resize((max(round(tile.width * scale), 1), max(round(tile.height * scale), 1)))
    pen = ImageDraw.Draw(tile)
    for number, params in reversed(list(enumerate(sample.crops))):
        colour = GLOBAL_COLOUR if number < N_GLOBAL else LOCAL_COLOUR
        pen.rectangle(_corners(params, scale), outline=colour, width=2 if number < N_GLOBAL else 1)
    return tile


def _corners(params: CropParams, scale: float) -> tuple[float, float, float, float]:
    right, bottom = params.left + params.width, params.top + params.height
    left, top = params.left * scale, params.top * scale
    return left, top, max(right * scale - 1, left), max(bottom * scale - 1, top)


def _pixels(crop: Tensor, crops: CropsSection) -> Tensor:
    """Undo the normalisation: uint8 (3, S, S)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (crops.normalize.mean, crops.normalize.std))
    return ((crop * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)


def _shaded(pixels: Tensor, mask: Tensor) -> Image.Image:
    """Darken the masked patches (rows, columns) of a crop."""
    masked = F.interpolate(mask[None, None].float(), pixels.shape[-2:], mode="nearest")[0]  # (1, S, S)
    return to_pil_image((pixels * torch.where(masked > 0, SHADE, 1.0)).to(torch.uint8))
