"""DINOv2's multi-crop augmentation (arXiv 2304.07193), computed on tensors.

Crops are resized in uint8, where torch is fastest, and go on in float: nothing is rounded between the operations, as
PIL's would be. Against the composition of torchvision's transforms on PIL images with the same parameters that leaves
differences of a few grey levels, most of them from PIL's 8-bit hue.
"""

from typing import TypedDict

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from dinov2.data import image_ops
from dinov2.data.crop_params import CropParams, JitterOp, draw_crops
from dinov2.utils.schema import CropsSection

_JITTER = {
    "brightness": image_ops.adjust_brightness,
    "contrast": image_ops.adjust_contrast,
    "saturation": image_ops.adjust_saturation,
    "hue": image_ops.adjust_hue,
}


class Crops(TypedDict):
    """Normalised float32 crops of one tile."""

    global_crops: list[Tensor]  # 2 of (3, S, S)
    local_crops: list[Tensor]  # n of (3, s, s)


class MultiCropAugmentation:
    """Two global and n local crops of a tile, each cropped, flipped, jittered, blurred and normalised by itself.

    All randomness comes from torch's CPU RNG; whoever wants reproducible crops seeds it (`seeding.torch_seed`).

    Args:
        crops: sizes, scales, probabilities and normalisation.
    """

    def __init__(self, crops: CropsSection) -> None:
        self.crops = crops
        self._mean = torch.tensor(crops.normalize.mean)[:, None, None]  # (3, 1, 1)
        self._std = torch.tensor(crops.normalize.std)[:, None, None]  # (3, 1, 1)

    def __call__(self, tile: Image.Image | Tensor) -> Crops:
        """Crop a tile: an RGB image, or uint8 (3, H, W)."""
        image: Tensor = tile if isinstance(tile, Tensor) else pil_to_tensor(tile)
        params = draw_crops(self.crops, image.shape[-2], image.shape[-1])
        return {
            "global_crops": [self.render(image, p, self.crops.global_crops_size) for p in params[:2]],
            "local_crops": [self.render(image, p, self.crops.local_crops_size) for p in params[2:]],
        }

    def render(self, image: Tensor, params: CropParams, size: int) -> Tensor:
        """Compute one crop.

        Args:
            image: uint8 (3, H, W).
            params: what to do.
            size: side of the result, px.

        Returns:
            float32 (3, size, size), normalised.
        """
        box = image[:, params.top : params.top + params.height, params.left : params.left + params.width]
        crop = F.interpolate(box[None], (size, size), mode="bicubic", antialias=True)[0]  # (3, size, size) uint8
        if params.flip:
            crop = crop.flip(-1)
        x = crop.contiguous().to(torch.float32).div_(255)
        for operation, factor in params.jitter:
            x = apply_jitter(x, operation, factor)
        if params.grayscale:
            x = image_ops.grayscale(x)
        if params.blur_sigma is not None:
            x = image_ops.gaussian_blur(x, self.crops.blur_kernel, params.blur_sigma)
        if params.solarize:
            x = image_ops.solarize(x)
        return x.sub_(self._mean).div_(self._std)


def apply_jitter(image: Tensor, operation: JitterOp, factor: float) -> Tensor:
    """One operation of colour jitter on float (3, H, W) in [0, 1]; may overwrite its argument."""
    return _JITTER[operation](image, factor)
