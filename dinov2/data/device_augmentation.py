"""The augmentation on the training device: all crops of a batch of tiles at once, from parameters drawn by workers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dinov2.data import image_ops
from dinov2.data.blur import gaussian_blur_batch
from dinov2.data.device_crop import crop_tiles
from dinov2.data.device_plan import CropPlan, Operation
from dinov2.data.stain import jitter_stains
from dinov2.data.tiles import PackedTiles
from dinov2.utils.schema import CropsSection

LARGEST_GROUP = 2**27  # values of tiles that become float32 at once: 680 of 256 px, 2 of 4,096 px


class DeviceAugmentation:
    """Renders plans with plain batched operations, which run wherever their tensors live, without waiting for it.

    The crop is not rounded to eight bits, as the worker's is: that is all in which the two differ.

    Args:
        crops: sizes, blur kernel and normalisation; everything random is in the plans.
        device: where to work.
    """

    def __init__(self, crops: CropsSection, device: torch.device) -> None:
        self.crops = crops
        self.device = device
        self._mean = torch.tensor(crops.normalize.mean, device=device)[:, None, None]  # (3, 1, 1)
        self._std = torch.tensor(crops.normalize.std, device=device)[:, None, None]  # (3, 1, 1)
        self._operations: dict[Operation, Callable[[Tensor, Tensor], Tensor]] = {
            "transpose": lambda images, _: images.transpose(1, 3),
            "stain": lambda images, values: jitter_stains(images, values[:, :3], values[:, 3:6]),
            "brightness": lambda images, values: image_ops.adjust_brightness(images, _first(values)),
            "contrast": lambda images, values: image_ops.adjust_contrast(images, _first(values)),
            "saturation": lambda images, values: image_ops.adjust_saturation(images, _first(values)),
            "hue": lambda images, values: image_ops.adjust_hue(images, _first(values)),
            "grayscale": lambda images, _: image_ops.grayscale(images),
            "blur": lambda images, values: gaussian_blur_batch(images, crops.blur_kernel, values[:, 0]),
            "solarize": lambda images, _: image_ops.solarize(images),
        }

    @torch.no_grad()
    def render(self, tiles: PackedTiles, plan: CropPlan, size: int) -> Tensor:
        """Compute the crops of one size.

        Args:
            tiles: B tiles, on the device.
            plan: of n crops of each, on the device.
            size: side S of the crops, px.

        Returns:
            float32 (n * B, 3, S, S), normalised, the first crop of all tiles first; (0, 3, 0, 0) for n = 0.
        """
        batch, count = plan.boxes.shape[:2]
        if count == 0:
            return torch.empty(0, 3, 0, 0, device=self.device)
        # The trainer's autocast and TF32 must not reach the products: half precision is not enough for pixels.
        with torch.autocast(self.device.type, enabled=False), _full_precision():
            images = _crop_all(tiles, plan, size)  # (B * n, S, 3, S)
            for operation, rows, values in plan:
                changed = self._operations[operation](images.index_select(0, rows), values)
                images.index_copy_(0, rows, changed)
        planar = images.view(batch, count, size, 3, size).permute(1, 0, 3, 2, 4)  # (n, B, 3, S, S)
        out = torch.empty(planar.shape, device=self.device)
        return torch.sub(planar, self._mean, out=out).div_(self._std).flatten(0, 1)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 are computed as such, whatever the process has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _crop_all(tiles: PackedTiles, plan: CropPlan, size: int) -> Tensor:
    """All crops (B * n, S, 3, S), one product an axis for the tiles of each size."""
    parts, order = [], []
    for members, group in tiles.groups(LARGEST_GROUP):
        # The layout of `image_ops`, made while eight bits become 32.
        floats = group.permute(0, 2, 1, 3).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        if len(members) == len(tiles.sizes):
            return crop_tiles(floats, plan.boxes, plan.flips, size, plan.longest)
        boxes, flips = (torch.stack([whole[tile] for tile in members]) for whole in (plan.boxes, plan.flips))
        parts.append(crop_tiles(floats, boxes, flips, size, plan.longest).unflatten(0, (len(members), -1)))
        order += members
    places = sorted(range(len(order)), key=order.__getitem__)  # known to the host: no wait
    tiled = [crop for part in parts for crop in part]
    return torch.cat([tiled[place] for place in places])


def _first(values: Tensor) -> Tensor:
    return values[:, :1, None, None]  # (k, 1, 1, 1)
