"""Multi-crop augmentations that others use, from a JPEG file to stacked crops: the contenders of `data.py`.

Each is a function from the files of a batch to (global crops, local crops). DINOv2's composition is written out here
from its description; torchvision's is the same on tensors.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2.functional import pil_to_tensor

from dinov2.utils.schema import CropsSection

Crops = tuple[Tensor, Tensor]
Peer = Callable[[Sequence[str]], Crops]
BICUBIC = InterpolationMode.BICUBIC


def read_pil(path: str) -> Image.Image:
    """Return an image file as RGB."""
    with Image.open(path) as image:
        return image.convert("RGB")


def dinov2_composition(crops: CropsSection) -> Peer:
    """DINOv2's transforms on PIL images: crop, flip, colour jitter, grayscale, blur, tensor, normalisation."""
    return _multi_crop(crops, read_pil, lambda size, scale, blur: v1.Compose(_transforms(v1, crops, size, scale, blur)))


def torchvision_v2(crops: CropsSection) -> Peer:
    """The same with torchvision's second version on uint8 tensors."""
    return _multi_crop(
        crops,
        lambda path: pil_to_tensor(read_pil(path)),
        lambda size, scale, blur: v2.Compose(_transforms(v2, crops, size, scale, blur)),
    )


def _multi_crop(crops: CropsSection, read: Callable[[str], Any], make: Callable[..., Callable[[Any], Tensor]]) -> Peer:
    first, second = (make(crops.global_crops_size, crops.global_crops_scale, crops.blur_p[kind]) for kind in (0, 1))
    local = make(crops.local_crops_size, crops.local_crops_scale, crops.blur_p[2])
    transforms = [first, second, *([local] * crops.local_crops_number)]

    def peer(paths: Sequence[str]) -> Crops:
        return _stack([[transform(image) for transform in transforms] for image in map(read, paths)])

    return peer


def _stack(samples: list[list[Tensor]]) -> Crops:
    """Crop-major, as DINOv2 collates."""
    rows = list(zip(*samples, strict=True))
    large, small = ([crop for row in part for crop in row] for part in (rows[:2], rows[2:]))
    return torch.stack(large), torch.stack(small)


def _transforms(
    library: Any, crops: CropsSection, size: int, scale: tuple[float, float], blur: float
) -> list[Callable[[Any], Any]]:
    jitter, (low, high) = crops.color_jitter, crops.blur_sigma
    strengths = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    to_float = [v1.ToTensor()] if library is v1 else [v2.ToDtype(torch.float32, scale=True)]
    return [
        library.RandomResizedCrop(size, scale=scale, interpolation=BICUBIC),
        library.RandomHorizontalFlip(crops.horizontal_flip_p),
        library.RandomApply([library.ColorJitter(*strengths)], p=jitter.p),
        library.RandomGrayscale(crops.grayscale_p),
        library.RandomApply([library.GaussianBlur(crops.blur_kernel, (low, high))], p=blur),
        *to_float,
        library.Normalize(crops.normalize.mean, crops.normalize.std),
    ]
