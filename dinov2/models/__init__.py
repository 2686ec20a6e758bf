"""Backbones by name.

>>> from dinov2.models import build_backbone
>>> model = build_backbone("mvhybrid")

They are models of timm as well, once this package is imported: `timm.create_model("mvhybrid_small")`.
"""

from dinov2.models import backbones as _backbones  # noqa: F401  (registers the names)
from dinov2.models.factory import build_model_from_cfg
from dinov2.models.isotropic import IsotropicBackbone
from dinov2.models.registry import build_backbone, get_spec, list_backbones, register_backbone
from dinov2.models.spec import BackboneSpec, BlockGroup
from dinov2.models.timm_hook import install as _tell_timm

__all__ = [
    "BackboneSpec",
    "BlockGroup",
    "IsotropicBackbone",
    "build_backbone",
    "build_model_from_cfg",
    "get_spec",
    "list_backbones",
    "register_backbone",
]

_tell_timm()
