"""DINOv2's multi-crop augmentation (arXiv 2304.07193), computed on tensors, one crop after the other: a worker's form.

Crops are resized in uint8, where torch is fastest on a CPU, and go on in float: nothing is rounded between the
operations, as PIL's would be. Against the composition of torchvision's transforms on PIL images with the same
parameters that leaves differences of a few grey levels, most of them from PIL's 8-bit hue. What follows the resizing
is one call of a C kernel where there is a compiler, and else plain PyTorch, equal within float rounding.
"""

import functools
import logging
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import get_worker_info

from dinov2.data import image_ops
from dinov2.data.blur import blur_taps, gaussian_blur
from dinov2.data.crop_params import CropParams, JitterOp
from dinov2.data.stain import jitter_stains
from dinov2.data.workers import share
from dinov2.ops import native
from dinov2.ops.crop.native import SOURCE, finish_crop
from dinov2.utils.schema import CropsSection

logger = logging.getLogger("dinov2")

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
        use_native: whether to use the C kernel; None: where it compiles.
    """

    def __init__(self, crops: CropsSection, use_native: bool | None = None) -> None:
        self.crops = crops
        self._native = _has_kernel() if use_native is None else use_native
        self._mean = torch.tensor(crops.normalize.mean)  # (3,)
        self._std = torch.tensor(crops.normalize.std)  # (3,)

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
        if get_worker_info() is not None:
            share(out)  # where the main process reads it: once full, it would be copied there
        scratch = torch.empty(3 * size * size + size + self.crops.blur_kernel)
        for place, (tile, tile_params) in enumerate(zip(tiles, params, strict=True)):
            for number, crop_params in enumerate(tile_params):
                self.render(tile, crop_params, out[number, place], scratch)
        return out.flatten(0, 1)

    def render(self, image: Tensor, params: CropParams, out: Tensor, scratch: Tensor) -> None:
        """Compute one crop.

        Args:
            image: uint8 (3, H, W).
            params: what to do.
            out: float32 (3, S, S), contiguous; receives the normalised crop.
            scratch: float32, at least 3 * S * S + S + blur kernel values of memory to work in.
        """
        size = out.shape[-1]
        box = image[:, params.top : params.top + params.height, params.left : params.left + params.width]
        crop = F.interpolate(box[None], (size, size), mode="bicubic", antialias=True)[0]  # (3, S, S) uint8
        crop = _oriented(crop, params).contiguous()
        if self._native and params.stain is None:
            self._finish_native(crop, params, out, scratch)
        else:
            self._finish(crop, params, out)

    def _finish_native(self, crop: Tensor, params: CropParams, out: Tensor, scratch: Tensor) -> None:
        steps = [*params.jitter, *([("grayscale", 0.0)] if params.grayscale else [])]
        taps = None
        if params.blur_sigma is not None:
            taps = blur_taps(torch.tensor([params.blur_sigma]), self.crops.blur_kernel)[0]
        finish_crop(crop, steps, taps, params.solarize, self._mean, self._std, out, scratch)

    def _finish(self, crop: Tensor, params: CropParams, out: Tensor) -> None:
        x = crop.to(torch.float32).div_(255).view(1, 1, 3, -1)
        if params.stain is not None:
            x = jitter_stains(x, torch.tensor([params.stain.gain]), torch.tensor([params.stain.bias]))
        for operation, factor in params.jitter:
            x = _JITTER[operation](x, factor)
        if params.grayscale:
            x = image_ops.grayscale(x)
        x = x.view_as(out)
        if params.blur_sigma is not None:
            x = gaussian_blur(x, self.crops.blur_kernel, params.blur_sigma)
        if params.solarize:
            x = image_ops.solarize(x)
        torch.sub(x, self._mean[:, None, None], out=out).div_(self._std[:, None, None])


@functools.cache  # says it once
def _has_kernel() -> bool:
    if reason := native.why_not(SOURCE):
        logger.warning("crops are made in plain PyTorch, in about twice the time: %s", reason)
    return not reason


def _oriented(crop: Tensor, params: CropParams) -> Tensor:
    axes = [axis for axis, wanted in ((-2, params.vertical_flip), (-1, params.flip)) if wanted]
    crop = crop.flip(axes) if axes else crop
    return crop.rot90(params.quarter_turns, (-2, -1)) if params.quarter_turns else crop
