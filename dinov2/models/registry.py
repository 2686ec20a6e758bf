"""Names of backbones: one registry, and the one function that builds from it."""

from typing import Any

from dinov2.models.isotropic import IsotropicBackbone
from dinov2.models.spec import SIZES, BackboneSpec
from dinov2.utils.suggest import did_you_mean

_specs: dict[str, BackboneSpec] = {}
_aliases: dict[str, str] = {}


def register_backbone(spec: BackboneSpec, aliases: tuple[str, ...] = ()) -> BackboneSpec:
    """Add a spec under its name and `aliases` (matched without regard to case).

    Raises:
        ValueError: a name is taken.
    """
    names = (spec.name, *aliases)
    for name in names:
        if name.lower() in _aliases:
            raise ValueError(f"backbone name {name!r} is registered already, for {_aliases[name.lower()]!r}")
    _aliases.update({name.lower(): spec.name for name in names})
    _specs[spec.name] = spec
    return spec


def list_backbones() -> list[str]:
    """Return the registered names, in order of registration."""
    return list(_specs)


def get_spec(name: str, **overrides: Any) -> BackboneSpec:
    """Return the spec of `name` (also `NAME_SIZE`, like `mvhybrid_tiny`), with other values for some fields.

    Raises:
        ValueError: unknown name or field (with the nearest known one), or values that cannot work together.
    """
    lowered = name.lower()
    base, _, size = lowered.rpartition("_")
    if lowered not in _aliases and base in _aliases and size in SIZES:
        lowered, overrides = base, {"size": size, **overrides}
    if lowered not in _aliases:
        raise ValueError(f"unknown backbone {name!r}{did_you_mean(name, list_backbones(), listed=16)}")
    spec = _specs[_aliases[lowered]].override(**overrides)
    spec.check()
    return spec


def build_backbone(name: str, **overrides: Any) -> IsotropicBackbone:
    """Build a freshly initialised backbone, such as `build_backbone("mvhybrid", embed_dim=192, num_heads=3)`.

    Raises:
        ValueError: see `get_spec`.
    """
    return IsotropicBackbone(get_spec(name, **overrides))
