"""Multi-head self-attention (arXiv 1706.03762)."""

from torch import Tensor, nn

from dinov2.layers.linear import Linear
from dinov2.ops.attention import attention
from dinov2.ops.packing import Shapes, select_tokens


class Attention(nn.Module):
    """Bidirectional self-attention over (B, N, D), with DINOv2's parameter names."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, proj_bias: bool = True) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"attention: {num_heads} heads do not divide the width {dim}")
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim, bias=proj_bias)

    def forward(self, x: Tensor, shapes: Shapes | None = None, places: Tensor | None = None) -> Tensor:
        """Mix tokens (B, N, D) -> (B, N, D).

        With `shapes`, mix within the images of a pack (1, T, D), and return its tokens at `places` (K,), or all.
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, H, D / H)
        mixed = attention(qkv, shapes).flatten(2)  # (B, N, D)
        return self.proj(select_tokens(mixed, places))
