"""From a training configuration to its student and teacher."""

from dataclasses import asdict
from typing import Any

from dinov2.models.isotropic import IsotropicBackbone
from dinov2.models.registry import get_spec
from dinov2.models.spec import BackboneSpec
from dinov2.utils.schema import SSLConfig, StudentSection

_NOT_IN_SPEC = ("arch", "pretrained_weights", "ffn_layer", "ssm")


def spec_from_student(student: StudentSection, img_size: int) -> BackboneSpec:
    """Return the spec that the `student` section asks for, for images of `img_size` px.

    Raises:
        ValueError: an unknown architecture, or values that cannot work together.
    """
    overrides: dict[str, Any] = {key: value for key, value in asdict(student).items() if key not in _NOT_IN_SPEC}
    overrides |= asdict(student.ssm)
    overrides = {key: value for key, value in overrides.items() if value is not None}
    spec = get_spec(student.arch, **overrides, img_size=img_size)
    if student.ffn_layer is not None:
        mixer = {"mlp": "mlp", "swiglufused": "swiglu"}[student.ffn_layer]
        groups = [
            f"{g.count} x {g.sequence_mixer} + {mixer if g.channel_mixer in ('mlp', 'swiglu') else g.channel_mixer}"
            for g in spec.blocks
        ]
        spec = spec.override(blocks=groups)
    return spec


def build_model_from_cfg(cfg: SSLConfig) -> tuple[IsotropicBackbone, IsotropicBackbone, int]:
    """Return (student, teacher, embed_dim); the teacher starts equal to the student, never drops paths, is frozen.

    Raises:
        ValueError: see `spec_from_student`.
    """
    spec = spec_from_student(cfg.student, cfg.crops.global_crops_size)
    student = IsotropicBackbone(spec)
    teacher = IsotropicBackbone(spec.override(drop_path_rate=0.0))
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False).eval()
    return student, teacher, spec.embed_dim
