"""Image to patch tokens (arXiv 2010.11929)."""

import torch
from torch import Tensor, nn

from dinov2.utils.errors import UserError


class ImageError(UserError):
    """Images, or masks over their patches, that a backbone cannot take."""


class PatchEmbed(nn.Module):
    """A convolution whose stride is its kernel: (B, 3, H, W) -> (B, H / p * W / p, D), row by row."""

    def __init__(self, patch_size: int, embed_dim: int, in_chans: int = 3) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of patches in an image of `height` x `width` pixels.

        Raises:
            ImageError: a side is not a positive multiple of the patch size.
        """
        p, height, width = self.patch_size, int(height), int(width)  # sizes are tensors while a graph is traced
        if height < p or width < p or height % p or width % p:
            near = [max(round(side / p), 1) * p for side in (height, width)]
            raise ImageError(
                f"image of {height} x {width} px: each side must be a positive multiple of the patch size {p}; "
                f"the nearest valid size is {near[0]} x {near[1]}"
            )
        return height // p, width // p

    def grid_of(self, x: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches in images (B, C, H, W).

        Raises:
            ImageError: their shape, dtype or device is not what this layer takes (named, with the rule).
        """
        channels, device = self.proj.in_channels, self.proj.weight.device
        shape = tuple(x.shape)
        if x.ndim != 4 or x.shape[1] != channels:
            raise ImageError(
                f"images have shape {shape}; expected (batch, {channels}, height, width); "
                "one image gets its batch by unsqueeze(0), channels that come last are moved by permute(0, 3, 1, 2)"
            )
        if x.shape[0] < 1:
            raise ImageError(f"images have shape {shape}; expected at least one image: leave an empty batch out")
        if not x.is_floating_point():
            raise ImageError(
                f"images {shape} have dtype {x.dtype}; expected floating-point values, normalised by the mean and "
                "standard deviation that the backbone was trained with"
            )
        if x.device != device:
            raise ImageError(f"images {shape} are on {x.device} but the backbone is on {device}; move one with .to()")
        return self.grid(x.shape[-2], x.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, C, H, W) as tokens (B, N, D).

        Raises:
            ImageError: see `grid_of`.
        """
        self.grid_of(x)
        return self.proj(x).flatten(2).transpose(1, 2)


def check_masks(masks: Tensor, patches: Tensor) -> None:
    """Check masks (B, N) against the patches (B, N, D) that they replace where True.

    Raises:
        ImageError: their shape, dtype or device is another (named, with the rule).
    """
    shape, expected = tuple(masks.shape), tuple(patches.shape[:2])
    if shape != expected:
        raise ImageError(f"masks have shape {shape}; expected {expected}, one value a patch")
    if masks.dtype != torch.bool:
        raise ImageError(f"masks {shape} have dtype {masks.dtype}; expected torch.bool, True where a patch is replaced")
    if masks.device != patches.device:
        raise ImageError(f"masks {shape} are on {masks.device} but the images are on {patches.device}; move them there")
