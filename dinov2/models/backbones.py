"""The backbones: six of the MVHybrid study, and the official DINOv2 vision transformers."""

from dinov2.models.registry import register_backbone
from dinov2.models.spec import BackboneSpec, BlockGroup

ATTENTION_MLP = ("attention", "mlp")

VIT12 = register_backbone(
    BackboneSpec("vit12", (BlockGroup(*ATTENTION_MLP, 12),), "first", "learned", layerscale=1e-5, norm_eps=1e-6),
    aliases=("vit-12",),
)
VIT24 = register_backbone(
    BackboneSpec("vit24", (BlockGroup(*ATTENTION_MLP, 24),), "first", "learned", layerscale=1e-5, norm_eps=1e-6),
    aliases=("vit-24",),
)
VIM_EINFFT = register_backbone(
    BackboneSpec("vim_einfft", (BlockGroup("vim", "einfft", 24),), "middle", "learned"), aliases=("vimeinfft",)
)
HYDRA_EINFFT = register_backbone(
    BackboneSpec("hydra_einfft", (BlockGroup("hydra", "einfft", 24),), "middle", "learned"), aliases=("hydraeinfft",)
)
HYDRA_HYBRID = register_backbone(
    BackboneSpec(
        "hydra_hybrid", (BlockGroup("hydra", "einfft", 12), BlockGroup(*ATTENTION_MLP, 12)), "middle", "learned"
    ),
    aliases=("hydrahybrid",),
)
MVHYBRID = register_backbone(
    BackboneSpec(
        "mvhybrid", (BlockGroup("mamba_vision", "einfft", 12), BlockGroup(*ATTENTION_MLP, 12)), "middle", "none"
    ),
    aliases=("mamba_vision_s",),
)


def _official(name: str, depth: int, embed_dim: int, num_heads: int, channel_mixer: str = "mlp") -> BackboneSpec:
    return register_backbone(
        BackboneSpec(
            name,
            (BlockGroup("attention", channel_mixer, depth),),
            "first",
            "learned",
            layerscale=1.0,
            norm_eps=1e-6,
            embed_dim=embed_dim,
            num_heads=num_heads,
            patch_size=14,
            img_size=518,
        )
    )


VIT_SMALL = _official("vit_small", 12, 384, 6)
VIT_BASE = _official("vit_base", 12, 768, 12)
VIT_LARGE = _official("vit_large", 24, 1024, 16)
VIT_GIANT2 = _official("vit_giant2", 40, 1536, 24, channel_mixer="swiglu")
