"""The residual block that every backbone stacks."""

from torch import Tensor, nn

from dinov2.layers.attention import Attention
from dinov2.layers.drop_path import DropPath
from dinov2.layers.layer_scale import LayerScale
from dinov2.layers.mlp import Mlp
from dinov2.layers.swiglu import SwiGLU
from dinov2.ops.packing import Shapes, each_batch, select_tokens


class Block(nn.Module):
    """x + drop_path(ls1(sequence_mixer(norm1(x)))), then the same with the channel mixer, over tokens (B, L, D).

    Attention and feed-forward layers carry DINOv2's names (`attn`, `mlp`), so that its checkpoints load; the others are
    `mixer` and `channel_mixer`.
    """

    def __init__(
        self,
        dim: int,
        sequence_mixer: nn.Module,
        channel_mixer: nn.Module,
        norm_eps: float,
        layerscale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self._sequence = "attn" if isinstance(sequence_mixer, Attention) else "mixer"
        self._channel = "mlp" if isinstance(channel_mixer, Mlp | SwiGLU) else "channel_mixer"
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.add_module(self._sequence, sequence_mixer)
        self.ls1 = nn.Identity() if layerscale is None else LayerScale(dim, layerscale)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.add_module(self._channel, channel_mixer)
        self.ls2 = nn.Identity() if layerscale is None else LayerScale(dim, layerscale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, shapes: Shapes | None = None, places: Tensor | None = None) -> Tensor:
        """Refine tokens (B, L, D) -> (B, L, D).

        With `shapes`, refine a pack (1, T, D) of batches of those shapes, and return its tokens at `places` (K,), or
        all. Whatever works token by token after the last mixing of tokens is computed for those alone.
        """
        sequence, channel = self.get_submodule(self._sequence), self.get_submodule(self._channel)
        by_token = self._channel == "mlp"
        early = places if by_token else None
        normed = self.norm1(x)
        if self._sequence == "attn":
            mixed = sequence(normed, shapes, early)
        else:
            mixed = select_tokens(each_batch(sequence, normed, shapes), early)
        x = select_tokens(x, early) + self.drop_path(self.ls1(mixed), shapes, early)
        normed = self.norm2(x)
        mixed = channel(normed) if by_token else each_batch(channel, normed, shapes)
        x = x + self.drop_path(self.ls2(mixed), shapes, early)
        return x if by_token else select_tokens(x, places)
