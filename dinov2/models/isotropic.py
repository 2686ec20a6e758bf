"""The one backbone class: patches in, tokens of one width through a stack of blocks, DINOv2's outputs."""

from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from dinov2.layers.attention import Attention
from dinov2.layers.block import Block
from dinov2.layers.einfft import EinFFT
from dinov2.layers.hydra import Hydra
from dinov2.layers.mamba_vision import MambaVisionMixer
from dinov2.layers.mlp import Mlp
from dinov2.layers.patch_embed import PatchEmbed, check_masks
from dinov2.layers.swiglu import SwiGLU
from dinov2.layers.vim import BidirectionalMamba
from dinov2.models.init import initialise
from dinov2.models.pos_embed import interpolate_pos_embed
from dinov2.models.spec import BackboneSpec
from dinov2.ops.packing import Shapes, pack, unpack
from dinov2.utils.errors import UserError


class Features(TypedDict):
    """The outputs of a backbone; N patches, R registers."""

    x_norm_clstoken: Tensor  # (B, D)
    x_norm_regtokens: Tensor  # (B, R, D)
    x_norm_patchtokens: Tensor  # (B, N, D), raster order
    x_prenorm: Tensor  # (B, 1 + R + N, D): CLS, registers, patches
    masks: Tensor | None  # (B, N)


class IsotropicBackbone(nn.Module):
    """A backbone built from a spec. Images are (B, 3, H, W) with sides that are multiples of the patch size.

    `forward_features` returns `Features`.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed_dim = self.num_features = spec.embed_dim
        self.patch_size = spec.patch_size
        self.num_heads = spec.num_heads
        self.num_register_tokens = spec.num_register_tokens
        self.n_blocks = spec.depth
        dim = spec.embed_dim

        self.patch_embed = PatchEmbed(spec.patch_size, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.register_tokens = (
            nn.Parameter(torch.zeros(1, spec.num_register_tokens, dim)) if spec.num_register_tokens else None
        )
        side = max(spec.img_size // spec.patch_size, 1)
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side + 1, dim)) if spec.pos_embed == "learned" else None
        self.blocks = nn.ModuleList(_build_blocks(spec))
        self.norm = nn.LayerNorm(dim, eps=spec.norm_eps)
        self.head = nn.Identity()
        initialise(self)

    def forward(self, x: Tensor, masks: Tensor | None = None, is_training: bool = False) -> Tensor | Features:
        """Return the CLS embedding (B, D), or all outputs of `forward_features` when `is_training`."""
        features = self.forward_features(x, masks)
        return features if is_training else self.head(features["x_norm_clstoken"])

    def forward_features(self, x: Tensor, masks: Tensor | None = None) -> Features:
        """Embed images (B, 3, H, W); patches where `masks` (B, N) is True are replaced by the mask token.

        Raises:
            ImageError: images or masks of another shape, dtype or device than the backbone takes.
        """
        tokens = self._embed(x, masks)
        for block in self.blocks:
            tokens = block(tokens)
        return self._features(tokens, masks)

    def forward_features_list(self, xs: Sequence[Tensor], masks: Sequence[Tensor | None]) -> list[Features]:
        """Embed several batches of images of different sizes in one pass through the blocks; one dict each."""
        batches = [self._embed(x, mask) for x, mask in zip(xs, masks, strict=True)]
        shapes = _shapes(batches)
        tokens = pack(batches)  # (1, T, D)
        for block in self.blocks:
            tokens = block(tokens, shapes)
        return [self._features(part, mask) for part, mask in zip(unpack(tokens, shapes), masks, strict=True)]

    def forward_selected(
        self, xs: Sequence[Tensor], masks: Sequence[Tensor | None], patches: Sequence[Tensor | None]
    ) -> list[tuple[Tensor, Tensor]]:
        """Embed several batches like `forward_features_list`, but only what a loss reads.

        The last block computes no token that nobody asked for, from its last mixing of tokens on.

        Args:
            xs: images, per batch (B, 3, H, W).
            masks: per batch (B, N), or None.
            patches: per batch the patches wanted, each once, counted from 0 over all B * N (M,), or None for none.

        Returns:
            Per batch the normalised CLS embeddings (B, D), and those of the wanted patches (M, D).
        """
        batches = [self._embed(x, mask) for x, mask in zip(xs, masks, strict=True)]
        shapes = _shapes(batches)
        places, first = [], 0
        for (count, length), wanted in zip(shapes, patches, strict=True):
            places += [first + place for place in self._places(count, length, wanted, xs[0].device)]
            first += count * length
        tokens = pack(batches)  # (1, T, D)
        for block in self.blocks[:-1]:
            tokens = block(tokens, shapes)
        tokens = self.norm(self.blocks[-1](tokens, shapes, torch.cat(places))).squeeze(0)  # (K, D)
        parts = tokens.split([len(place) for place in places])
        return list(zip(parts[::2], parts[1::2], strict=True))

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Any, ...]:
        """Return the patch tokens after the last `n` blocks, or after the blocks whose indices are in `n`.

        Each is (B, N, D), or (B, D, H / p, W / p) when `reshape`; with `return_class_token` a pair with CLS (B, D).
        They come in the order of the blocks, whatever that of `n`, as in DINOv2.

        Raises:
            UserError: no block, one that does not exist, or one twice is asked for.
            ImageError: see `forward_features`.
        """
        depth = len(self.blocks)
        wanted = list(range(depth - n, depth)) if isinstance(n, int) else sorted(n)
        if not wanted or len(set(wanted)) < len(wanted) or not 0 <= wanted[0] <= wanted[-1] < depth:
            raise UserError(
                f"get_intermediate_layers: n = {n!r}; there are blocks 0 to {depth - 1}: give how many of the last, "
                f"1 to {depth}, or the indices of some, each once"
            )
        rows, columns = self.patch_embed.grid_of(x)
        tokens = self._embed(x, None)
        results: list[Any] = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index not in wanted:
                continue
            out = self._ordered(tokens)
            out = self.norm(out) if norm else out
            patches = out[:, 1 + self.num_register_tokens :]
            if reshape:
                patches = patches.transpose(1, 2).unflatten(2, (rows, columns))  # (B, D, h, w)
            results.append((patches, out[:, 0]) if return_class_token else patches)
        return tuple(results)

    def _embed(self, x: Tensor, masks: Tensor | None) -> Tensor:
        """Return the tokens (B, 1 + R + N, D) in the order in which the blocks see them."""
        rows, columns = self.patch_embed.grid_of(x)
        patches = self.patch_embed(x)  # (B, N, D)
        if masks is not None:
            check_masks(masks, patches)
            patches = torch.where(masks.unsqueeze(-1), self.mask_token.to(patches.dtype).unsqueeze(0), patches)
        special = self.cls_token.expand(x.shape[0], -1, -1)  # (B, 1, D)
        if self.pos_embed is not None:
            pos = interpolate_pos_embed(
                self.pos_embed, rows, columns, self.spec.interpolate_antialias, self.spec.interpolate_offset
            )
            patches = patches + pos[:, 1:].to(patches.dtype)
            special = special + pos[:, :1]
        if self.register_tokens is not None:
            special = torch.cat([special, self.register_tokens.expand(x.shape[0], -1, -1)], dim=1)
        split = patches.shape[1] // 2 if self.spec.cls_position == "middle" else 0
        return torch.cat([patches[:, :split], special.to(patches.dtype), patches[:, split:]], dim=1)

    def _features(self, tokens: Tensor, masks: Tensor | None) -> Features:
        """Turn what the last block returns (B, 1 + R + N, D) into the outputs."""
        prenorm = self._ordered(tokens)
        normed = self.norm(prenorm)
        start = 1 + self.num_register_tokens
        return {
            "x_norm_clstoken": normed[:, 0],
            "x_norm_regtokens": normed[:, 1:start],
            "x_norm_patchtokens": normed[:, start:],
            "x_prenorm": prenorm,
            "masks": masks,
        }

    def _places(self, count: int, length: int, patches: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return where the CLS tokens and some patches lie among `count` images of `length` tokens in blocks' order."""
        special = 1 + self.num_register_tokens
        n = length - special
        split = n // 2 if self.spec.cls_position == "middle" else 0
        cls = torch.arange(count, device=device) * length + split  # (B,)
        if patches is None:
            return cls, cls[:0]
        images, inside = patches // n, patches % n  # each (M,)
        return cls, images * length + inside + special * (inside >= split)

    def _ordered(self, tokens: Tensor) -> Tensor:
        """Reorder tokens (B, 1 + R + N, D) from the blocks' order to CLS, registers, patches."""
        if self.spec.cls_position == "first":
            return tokens
        special = 1 + self.num_register_tokens
        split = (tokens.shape[1] - special) // 2
        return torch.cat([tokens[:, split : split + special], tokens[:, :split], tokens[:, split + special :]], dim=1)


def _shapes(batches: Sequence[Tensor]) -> Shapes:
    return tuple((int(batch.shape[0]), int(batch.shape[1])) for batch in batches)


def _build_blocks(spec: BackboneSpec) -> list[Block]:
    depth = spec.depth
    rates = [
        spec.drop_path_rate if spec.drop_path_uniform else spec.drop_path_rate * i / max(depth - 1, 1)
        for i in range(depth)
    ]
    pairs = [(g.sequence_mixer, g.channel_mixer) for g in spec.blocks for _ in range(g.count)]
    return [
        Block(
            spec.embed_dim,
            _sequence_mixer(sequence, spec),
            _channel_mixer(channel, spec),
            spec.norm_eps,
            spec.layerscale,
            rate,
        )
        for (sequence, channel), rate in zip(pairs, rates, strict=True)
    ]


def _sequence_mixer(name: str, spec: BackboneSpec) -> nn.Module:
    states = {} if spec.d_state is None else {"d_state": spec.d_state}
    if name == "attention":
        return Attention(spec.embed_dim, spec.num_heads, spec.qkv_bias, spec.proj_bias)
    if name == "mamba_vision":
        return MambaVisionMixer(spec.embed_dim, dt_init=spec.dt_init, **states)
    if name == "vim":
        return BidirectionalMamba(spec.embed_dim, dt_init=spec.dt_init, **states)
    return Hydra(spec.embed_dim, **states)


def _channel_mixer(name: str, spec: BackboneSpec) -> nn.Module:
    hidden = int(spec.embed_dim * spec.mlp_ratio)
    if name == "mlp":
        return Mlp(spec.embed_dim, hidden, spec.ffn_bias)
    if name == "swiglu":
        return SwiGLU(spec.embed_dim, hidden, spec.ffn_bias)
    return EinFFT(spec.embed_dim)
