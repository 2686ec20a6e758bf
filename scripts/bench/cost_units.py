"""What a training step moves and computes, from the configuration alone: units of FSDP2, and operations a step.

The model is built without memory (on PyTorch's meta device), so that a giant one costs nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import nn

from dinov2.distributed.parallelize import float32_modules, shard_axis
from dinov2.models.factory import spec_from_student
from dinov2.models.flops import count_flops
from dinov2.models.isotropic import IsotropicBackbone
from dinov2.models.spec import BackboneSpec
from dinov2.train.ssl_meta_arch import N_GLOBAL_CROPS, SSLMetaArch
from dinov2.utils.schema import DinoSection, IbotSection, SSLConfig

FP32 = 4
BF16 = 2
# Forward passes of the student through each block, which takes crops of both sizes at once, and through what computes
# in float32, one for each size.
BLOCK_CALLS = 1
FLOAT32_CALLS = 2


@dataclass(frozen=True)
class Unit:
    """Parameters that are gathered and reduced together.

    Attributes:
        name: of the module.
        shapes: of its parameters, those of units inside it left out.
        trained: false for the teacher's.
        gathered_bytes: of one gathered value: 2 in bf16, 4 for what computes in float32.
        calls: forward passes through it in a step; each gathers it anew where it is freed after use.
        root: it keeps its gathered parameters from forward to backward, whatever the policy.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    trained: bool
    gathered_bytes: int
    calls: int = 1
    root: bool = False

    @property
    def values(self) -> int:
        """How many parameters it has."""
        return sum(map(math.prod, self.shapes))

    def padded_values(self, shards: int) -> int:
        """Return how many values travel when it is gathered from `shards` processes.

        FSDP2 cuts every parameter along an axis into equal pieces; where no axis has a length that they divide, the
        last ones are filled up: an axis of 2 cut into 8 pieces travels as 8.
        """
        return sum(_padded(shape, shards) for shape in self.shapes)


def _padded(shape: tuple[int, ...], shards: int) -> int:
    length = shape[shard_axis(shape, shards)]
    return math.prod(shape) // length * -(-length // shards) * shards


@dataclass(frozen=True)
class Operations:
    """Floating-point operations for one image (its crops, and its share of masked patches); an addition counts too."""

    teacher: float
    forward: float
    backward: float


def model_units(config: SSLConfig) -> tuple[list[Unit], list[Unit]]:
    """Return the units of student and teacher, as `dinov2.distributed.parallelize` makes them."""
    with torch.device("meta"):
        arch = SSLMetaArch(config)
    calls = (BLOCK_CALLS, FLOAT32_CALLS) if config.crops.local_crops_number else (1, 1)
    student = [unit for name, module in arch.student.items() for unit in _units(name, module, True, calls)]
    teacher = [unit for name, module in arch.teacher.items() for unit in _units(name, module, False, (1, 1))]
    return student, teacher


def operations(config: SSLConfig) -> Operations:
    """Return the operations that a step spends on one image.

    A backward pass takes twice the operations of its forward pass, and once more for the blocks where activations are
    recomputed.
    """
    spec = spec_from_student(config.student, config.crops.global_crops_size)
    crops = config.crops
    of_global = N_GLOBAL_CROPS * backbone_macs(spec, crops.global_crops_size)
    of_local = crops.local_crops_number * backbone_macs(spec, crops.local_crops_size)
    patches = (crops.global_crops_size // config.student.patch_size) ** 2
    masked = N_GLOBAL_CROPS * patches * config.ibot.mask_sample_probability * sum(config.ibot.mask_ratio_min_max) / 2
    ibot = masked * _head_macs(config.ibot, spec.embed_dim) if config.ibot.loss_weight else 0.0
    dino = _head_macs(config.dino, spec.embed_dim)
    teacher = of_global + N_GLOBAL_CROPS * dino + ibot
    blocks = of_global + of_local
    forward = blocks + (N_GLOBAL_CROPS + crops.local_crops_number) * dino + ibot
    backward = 2 * forward + (blocks if config.parallel.activation_checkpointing else 0)
    return Operations(2 * teacher, 2 * forward, 2 * backward)


def backbone_macs(spec: BackboneSpec, size: int) -> float:
    """Return the multiply-adds of a backbone's forward pass over one image of `size` px.

    Counted at two small depths and continued: every further block adds the same.
    """
    groups = [replace(group, count=1) for group in spec.blocks]
    if any(group.count * len(groups) != spec.depth for group in spec.blocks):
        raise ValueError(f"{spec.name}: its groups of blocks have different lengths, which nobody needs to count here")
    once, twice = (
        count_flops(
            IsotropicBackbone(replace(spec, blocks=tuple(replace(group, count=n) for group in groups), img_size=size)),
            torch.zeros(1, 3, size, size),
        )
        for n in (1, 2)
    )
    return once + (spec.depth // len(groups) - 1) * (twice - once)


def total_values(units: Sequence[Unit]) -> int:
    """Return the parameters of several units."""
    return sum(unit.values for unit in units)


def _units(name: str, module: nn.Module, trained: bool, calls: tuple[int, int]) -> list[Unit]:
    taken: set[int] = set()

    def take(part: str, owner: nn.Module, size: int = BF16, calls: int = 1, root: bool = False) -> Unit:
        own = [parameter for parameter in owner.parameters() if id(parameter) not in taken]
        taken.update(map(id, own))
        return Unit(f"{name}.{part}".strip("."), tuple(tuple(p.shape) for p in own), trained, size, calls, root)

    if not isinstance(module, IsotropicBackbone):
        return [take("last_layer", module.get_submodule("last_layer")), take("mlp", module)]
    blocks, float32 = calls
    names = {id(part): path for path, part in module.named_modules()}
    units = [take(names[id(part)], part, FP32, float32) for part in float32_modules(module)]
    units += [take(f"blocks.{i}", block, calls=blocks) for i, block in enumerate(module.blocks)]
    return [*units, take("", module, calls=blocks, root=True)]


def _head_macs(section: DinoSection | IbotSection, width: int) -> float:
    hidden = section.head_hidden_dim
    widths = [width, *[hidden] * (section.head_nlayers - 1), section.head_bottleneck_dim, section.head_n_prototypes]
    return sum(a * b for a, b in pairwise(widths))
