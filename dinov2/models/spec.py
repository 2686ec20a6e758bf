"""What a backbone is, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from dinov2.utils.suggest import did_you_mean

SEQUENCE_MIXERS = ("attention", "mamba_vision", "vim", "hydra")
CHANNEL_MIXERS = ("mlp", "swiglu", "einfft")
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 192, "num_heads": 3},
    "small": {"embed_dim": 384, "num_heads": 6},
    "base": {"embed_dim": 768, "num_heads": 12},
}


class SpecError(ValueError):
    """A backbone cannot be built; `problems` maps each field to its value and what is wrong with it."""

    def __init__(self, name: str, problems: Mapping[str, tuple[Any, str]]) -> None:
        lines = (f"{field} = {value!r}: {text}" for field, (value, text) in problems.items())
        super().__init__(f"backbone {name}: {'; '.join(lines)}")
        self.problems = problems


@dataclass(frozen=True)
class BlockGroup:
    """`count` successive blocks with the same mixers; written `12 x mamba_vision + einfft` in YAML."""

    sequence_mixer: str
    channel_mixer: str
    count: int

    @classmethod
    def parse(cls, text: str) -> "BlockGroup":
        """Read `COUNT x SEQUENCE_MIXER + CHANNEL_MIXER`.

        Raises:
            ValueError: the text has another form, or a mixer is unknown.
        """
        count, _, mixers = (part.strip() for part in text.partition(" x "))
        sequence, _, channel = (part.strip() for part in mixers.partition("+"))
        if not count.isdigit() or int(count) < 1 or not sequence or not channel:
            raise ValueError(f"{text!r} is not of the form 'COUNT x SEQUENCE_MIXER + CHANNEL_MIXER'")
        for name, known in ((sequence, SEQUENCE_MIXERS), (channel, CHANNEL_MIXERS)):
            if name not in known:
                raise ValueError(f"unknown mixer {name!r} in {text!r}{did_you_mean(name, known)}")
        return cls(sequence, channel, int(count))


@dataclass(frozen=True)
class BackboneSpec:
    """A stack of blocks of one width. Every field can be overridden from YAML under `student`."""

    name: str
    blocks: tuple[BlockGroup, ...]
    cls_position: Literal["first", "middle"]
    pos_embed: Literal["learned", "none"]
    layerscale: float | None = None
    norm_eps: float = 1e-5
    embed_dim: int = 384
    num_heads: int = 6
    patch_size: int = 16
    mlp_ratio: float = 4.0
    img_size: int = 256  # px; sets the grid of the learned position embedding
    num_register_tokens: int = 0
    qkv_bias: bool = True
    proj_bias: bool = True
    ffn_bias: bool = True
    drop_path_rate: float = 0.0
    drop_path_uniform: bool = True
    interpolate_antialias: bool = False
    interpolate_offset: float = 0.1
    d_state: int | None = None  # None: the mixer's own, 16 or, for Hydra, 64
    dt_init: Literal["published", "mamba"] = "published"

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return sum(group.count for group in self.blocks)

    def with_depth(self, depth: int) -> "BackboneSpec":
        """Return the same proportions of blocks at another depth.

        Raises:
            SpecError: `depth` does not divide in those proportions.
        """
        if not self.blocks:
            return self
        if depth < 1 or any(group.count * depth % self.depth for group in self.blocks):
            parts = ":".join(str(group.count) for group in self.blocks)
            step = self.depth // _gcd([group.count for group in self.blocks])
            near = max(round(depth / step), 1) * step
            text = f"the blocks come in the proportion {parts}; the nearest valid depth is {near}"
            raise SpecError(self.name, {"depth": (depth, text)})
        return replace(
            self, blocks=tuple(replace(group, count=group.count * depth // self.depth) for group in self.blocks)
        )

    def override(self, **values: Any) -> "BackboneSpec":
        """Return a copy with other values; `size` and `depth` are accepted besides the fields.

        Raises:
            ValueError: an unknown field (with the nearest known one).
            SpecError: a size, depth or stack of blocks that does not exist.
        """
        known = {field.name for field in fields(self)} | {"size", "depth"}
        for key in values:
            if key not in known:
                raise ValueError(f"backbone {self.name}: unknown option {key!r}{did_you_mean(key, sorted(known))}")
        spec = self
        if (size := values.pop("size", None)) is not None:
            if size not in SIZES:
                raise SpecError(self.name, {"size": (size, f"unknown size{did_you_mean(str(size), tuple(SIZES))}")})
            spec = replace(spec, **SIZES[size])
        depth = values.pop("depth", None)
        if (blocks := values.get("blocks")) is not None:
            try:
                values["blocks"] = tuple(g if isinstance(g, BlockGroup) else BlockGroup.parse(g) for g in blocks)
            except ValueError as error:
                raise SpecError(self.name, {"blocks": (blocks, str(error))}) from error
        spec = replace(spec, **values)
        if depth is not None:
            spec = spec.with_depth(depth)
        return spec

    def check(self) -> None:
        """Raise SpecError with everything that cannot work."""
        if problems := self.problems():
            raise SpecError(self.name, {field: (getattr(self, field), text) for field, text in problems.items()})

    def problems(self) -> dict[str, str]:
        """Return what cannot work, as `field -> explanation` (empty when all is well)."""
        found: dict[str, str] = {}
        used = {group.sequence_mixer for group in self.blocks}
        channel = {group.channel_mixer for group in self.blocks}
        if self.embed_dim < 1 or self.num_heads < 1:
            return {"embed_dim" if self.embed_dim < 1 else "num_heads": "must be positive"}
        for name, lowest in {"patch_size": 1, "num_register_tokens": 0}.items():
            if getattr(self, name) < lowest:
                found[name] = f"must be at least {lowest}"
        if not self.blocks:
            found["blocks"] = "there must be at least one block"
        if self.mlp_ratio <= 0:
            found["mlp_ratio"] = "must be positive"
        if self.norm_eps <= 0:
            found["norm_eps"] = "must be positive"
        if not 0 <= self.drop_path_rate < 1:
            found["drop_path_rate"] = "must lie in [0, 1); at 1 nothing would be left"
        if self.d_state is not None and self.d_state < 1:
            found["d_state"] = "must be positive"
        if "attention" in used and self.embed_dim % self.num_heads:
            near = min((h for h in range(1, self.embed_dim + 1) if not self.embed_dim % h), key=self._far_from_heads)
            found["num_heads"] = (
                f"{self.num_heads} heads do not divide the width {self.embed_dim}; the nearest valid number is {near}"
            )
        if "einfft" in channel and self.embed_dim % 4:
            found["embed_dim"] = (
                f"einfft needs a width divisible by 4; the nearest is {max(round(self.embed_dim / 4), 1) * 4}"
            )
        if "hydra" in used and self.embed_dim % 32:
            near_width = max(round(self.embed_dim / 32), 1) * 32
            found["embed_dim"] = f"hydra needs a width divisible by 32; the nearest is {near_width}"
        return found

    def _far_from_heads(self, heads: int) -> int:
        return abs(heads - self.num_heads)


def _gcd(numbers: list[int]) -> int:
    from math import gcd

    return gcd(*numbers)
