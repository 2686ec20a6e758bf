"""DINOv2's multi-crop augmentation (arXiv 2304.07193), computed on tensors, one crop after the other: a worker's form.

Crops are resized in uint8, where torch is fastest on a CPU, and go on in float: nothing is rounded between the
operations, as PIL's would be. Against the composition of torchvision's transforms on PIL images with the same
parameters that leaves differences of a few grey levels, most of them from PIL's 8-bit hue.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dinov2.data import image_ops
from dinov2.data.blur import gaussian_blur
from dinov2.data.crop_params import CropParams, JitterOp, StainParams
from dinov2.data.stain import jitter_stains
from dinov2.utils.schema import CropsSection

_JITTER: dict[JitterOp, Callable[[Tensor, float], Tensor]] = {
    "brightness": image_ops.adjust_brightness,
    "contrast": image_ops.adjust_contrast,
    "saturation": image_ops.adjust_saturation,
    "hue": image_ops.adjust_hue,
}


class MultiCropAugmentation:
    """Renders crops: each cropped, flipped, turned, jittered, blurred and normalised by itself.

    Args:
        crops: sizes, blur kernel and normalisation; everything random is in the parameters (`draw_crops`).
    """

    def __init__(self, crops: CropsSection) -> None:
        self.crops = crops
        self._mean = torch.tensor(crops.normalize.mean)[:, None, None]  # (3, 1, 1)
        self._std = torch.tensor(crops.normalize.std)[:, None, None]  # (3, 1, 1)

    def render_batch(self, tiles: Sequence[Tensor], params: Sequence[Sequence[CropParams]], size: int) -> Tensor:
        """Compute the crops of one size of B tiles.

        Args:
            tiles: uint8 (3, H, W) each.
            params: n crops for each tile.
            size: side S of the crops, px.

        Returns:
            float32 (n * B, 3, S, S), normalised, the first crop of all tiles first; (0, 3, 0, 0) for n = 0.
        """
        count = len(params[0])
        if count == 0:
            return torch.empty(0, 3, 0, 0)
        out = torch.empty(count, len(tiles), 3, size, size)
        for place, (tile, tile_params) in enumerate(zip(tiles, params, strict=True)):
            for number, crop_params in enumerate(tile_params):
                self.render(tile, crop_params, out[number, place])
        return out.flatten(0, 1)

    def render(self, image: Tensor, params: CropParams, out: Tensor) -> None:
        """Compute one crop.

        Args:
            image: uint8 (3, H, W).
            params: what to do.
            out: float32 (3, S, S), contiguous; receives the normalised crop.
        """
        size = out.shape[-1]
        box = image[:, params.top : params.top + params.height, params.left : params.left + params.width]
        crop = F.interpolate(box[None], (size, size), mode="bicubic", antialias=True)[0]  # (3, S, S) uint8
        x = _oriented(crop, params).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        x = _coloured(x.view(1, 1, 3, -1), params).view(3, size, size)
        if params.blur_sigma is not None:
            x = gaussian_blur(x, self.crops.blur_kernel, params.blur_sigma)
        if params.solarize:
            x = image_ops.solarize(x)
        torch.sub(x, self._mean, out=out).div_(self._std)


def _oriented(crop: Tensor, params: CropParams) -> Tensor:
    axes = [axis for axis, wanted in ((-2, params.vertical_flip), (-1, params.flip)) if wanted]
    crop = crop.flip(axes) if axes else crop
    return crop.rot90(params.quarter_turns, (-2, -1)) if params.quarter_turns else crop


def _coloured(x: Tensor, params: CropParams) -> Tensor:
    """Apply what works on single pixels to (1, 1, 3, S * S), in place or not."""
    if params.stain is not None:
        x = _stained(x, params.stain)
    for operation, factor in params.jitter:
        x = _JITTER[operation](x, factor)
    return image_ops.grayscale(x) if params.grayscale else x


def _stained(x: Tensor, stain: StainParams) -> Tensor:
    return jitter_stains(x, torch.tensor([stain.gain]), torch.tensor([stain.bias]))
