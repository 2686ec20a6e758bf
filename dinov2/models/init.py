"""Weight initialisation of a backbone, as in DINOv2 and the published MVHybrid."""

from typing import TYPE_CHECKING

from torch import nn

from dinov2.layers.layer_scale import LayerScale

if TYPE_CHECKING:
    from dinov2.models.isotropic import IsotropicBackbone


def initialise(model: "IsotropicBackbone") -> None:
    """Draw every linear weight from a normal of std 0.02 cut at 2, zero the biases, and draw the tokens.

    With `dt_init="mamba"` the projections of delta keep the initialisation of their mixers.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not (model.spec.dt_init == "mamba" and name.endswith("dt_proj")):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, LayerScale):
            nn.init.constant_(module.gamma, module.init)
    nn.init.normal_(model.cls_token, std=1e-6)
    if model.register_tokens is not None:
        nn.init.normal_(model.register_tokens, std=1e-6)
    if model.pos_embed is not None:
        nn.init.trunc_normal_(model.pos_embed, std=0.02)
