"""Image to patch tokens (arXiv 2010.11929)."""

from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """A convolution whose stride is its kernel: (B, 3, H, W) -> (B, H / p * W / p, D), row by row."""

    def __init__(self, patch_size: int, embed_dim: int, in_chans: int = 3) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of patches in an image of `height` x `width` pixels.

        Raises:
            ValueError: a side is not a positive multiple of the patch size.
        """
        p, height, width = self.patch_size, int(height), int(width)  # sizes are tensors while a graph is traced
        if height < p or width < p or height % p or width % p:
            near = [max(round(side / p), 1) * p for side in (height, width)]
            raise ValueError(
                f"image of {height} x {width} px: each side must be a positive multiple of the patch size {p}; "
                f"the nearest valid size is {near[0]} x {near[1]}"
            )
        return height // p, width // p

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, 3, H, W) as tokens (B, N, D)."""
        self.grid(x.shape[-2], x.shape[-1])
        return self.proj(x).flatten(2).transpose(1, 2)
