"""The typed schema of a training configuration: DINOv2's keys and ours, with the paper's values as defaults.

Each section is one dataclass, so that each part of the program can take its own section and nothing more. The YAML file
`configs/ssl_default_config.yaml` documents the same keys for users; a test keeps the two equal.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ModelSection:
    """`MODEL`: where to start from."""

    WEIGHTS: str = ""  # DINOv2's key: a teacher to start from, empty for none


@dataclass
class PrecisionSection:
    """`compute_precision`: bf16 autocast on CUDA and fp32 on CPU under `auto`; fp16 with a scaled loss."""

    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"


@dataclass
class DinoSection:
    """`dino`: the CLS-token objective and its head."""

    loss_weight: float = 1.0
    head_n_prototypes: int = 65536
    head_bottleneck_dim: int = 256
    head_nlayers: int = 3
    head_hidden_dim: int = 2048
    koleo_loss_weight: float = 0.1
    koleo_loss_distributed: bool = True


@dataclass
class IbotSection:
    """`ibot`: the masked-patch objective, its masks and its head (the DINO head's sizes unless `separate_head`)."""

    loss_weight: float = 1.0
    mask_sample_probability: float = 0.5
    mask_ratio_min_max: tuple[float, float] = (0.1, 0.5)
    separate_head: bool = True
    head_n_prototypes: int = 65536
    head_bottleneck_dim: int = 256
    head_nlayers: int = 3
    head_hidden_dim: int = 2048


@dataclass
class TrainSection:
    """`train`: data, batch, length and housekeeping of a run."""

    dataset_path: str = ""
    output_dir: str = "."
    batch_size_per_gpu: int = 64
    global_batch_size: int | None = None  # None: as the run began, with batch_size_per_gpu on every process
    seed: int = 0
    num_workers: int = 10
    OFFICIAL_EPOCH_LENGTH: int = 493
    max_steps: int | None = None
    saveckp_freq: int = 20  # epochs between the checkpoints that are kept for good
    checkpoint_period_iterations: int = 493
    keep_last_checkpoints: int = 2
    async_checkpoints: bool = True
    log_period_iterations: int = 1
    centering: Literal["centering", "sinkhorn_knopp"] = "sinkhorn_knopp"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: int | None = None
    stop_before_minutes: float = 0.0
    max_skipped_steps: int = 3


@dataclass
class DataSection:
    """`data`: where tiles are augmented, and what the loader tolerates."""

    augment: Literal["auto", "device", "worker"] = "auto"
    max_bad_fraction: float = 0.01


@dataclass
class KernelsSection:
    """`kernels`: the backend of each operator (`dinov2.ops`)."""

    selective_scan: Literal["auto", "triton", "vendor", "native", "cpu", "doubling", "reference"] = "auto"
    ssd: Literal["auto", "triton", "vendor", "cpu", "quadratic", "reference"] = "auto"
    einfft: Literal["auto", "native", "products", "reference"] = "auto"
    conv_silu: Literal["auto", "vendor", "native", "plain"] = "auto"
    attention: Literal["auto", "xformers", "sdpa"] = "auto"
    linear: Literal["auto", "onednn", "plain"] = "auto"


@dataclass
class ParallelSection:
    """`parallel`: how several processes share the work."""

    strategy: Literal["auto", "none", "ddp", "fsdp", "hsdp"] = "auto"
    reshard_after_forward: bool = True
    reduce_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    activation_checkpointing: bool = False
    compile: bool = False
    timeout_minutes: float = 30.0


@dataclass
class SSMSection:
    """`student.ssm`: options of the state-space mixers."""

    d_state: int | None = None
    dt_init: Literal["published", "mamba"] = "published"


@dataclass
class StudentSection:
    """`student`: the backbone. `None` means the value of the backbone's spec; any field of a spec can be set here."""

    arch: str = "mvhybrid"
    size: Literal["tiny", "small", "base"] | None = None
    patch_size: int = 16
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_ratio: float | None = None
    blocks: list[str] | None = None
    cls_position: Literal["first", "middle"] | None = None
    pos_embed: Literal["learned", "none"] | None = None
    layerscale: float | None = None
    norm_eps: float | None = None
    drop_path_rate: float = 0.0
    drop_path_uniform: bool = True
    ffn_layer: Literal["mlp", "swiglufused"] | None = None
    qkv_bias: bool = True
    proj_bias: bool = True
    ffn_bias: bool = True
    num_register_tokens: int = 0
    interpolate_antialias: bool = False
    interpolate_offset: float = 0.1
    pretrained_weights: str = ""
    ssm: SSMSection = field(default_factory=SSMSection)


@dataclass
class TeacherSection:
    """`teacher`: the moving average and the sharpening of its targets."""

    momentum_teacher: float = 0.992
    final_momentum_teacher: float = 1.0
    warmup_teacher_temp: float = 0.04
    teacher_temp: float = 0.06
    warmup_teacher_temp_epochs: int = 30


@dataclass
class OptimSection:
    """`optim`: AdamW and its schedules; `lr` is derived from `base_lr` by `scaling_rule` over the global batch."""

    epochs: int = 200
    total_steps: int | None = None  # None: epochs * train.OFFICIAL_EPOCH_LENGTH
    accumulate_steps: int | None = None  # None: as few as train.batch_size_per_gpu allows
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    base_lr: float = 0.002
    warmup_epochs: int = 10
    min_lr: float = 1e-6
    clip_grad: float = 3.0
    freeze_last_layer_epochs: int = 1
    scaling_rule: Literal["sqrt_wrt_1024", "none"] = "sqrt_wrt_1024"
    patch_embed_lr_mult: float = 0.2
    layerwise_decay: float = 1.0
    adamw_beta1: float = 0.9
    adamw_beta2: float = 0.999
    no_decay: Literal["ours", "dinov2"] = "ours"


@dataclass
class NormalizeSection:
    """`crops.normalize`: channel statistics of the images, in [0, 1], or the name of known ones."""

    mean: tuple[float, float, float] = (0.70322989, 0.53606487, 0.66096631)
    std: tuple[float, float, float] = (0.21716536, 0.26081574, 0.20723464)

    @staticmethod
    def named() -> dict[str, "NormalizeSection"]:
        """Return what a name stands for: `lunit` (Kang et al. 2023, arXiv 2212.04690) is the default."""
        return {"lunit": NormalizeSection(), "imagenet": NormalizeSection((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


@dataclass
class JitterSection:
    """`crops.color_jitter`: torchvision's ColorJitter strengths and the probability of applying it."""

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.1
    p: float = 0.8


@dataclass
class HedJitterSection:
    """`crops.hed_jitter`: of the stains haematoxylin, eosin and DAB, in this order; off at p = 0.

    The amount of a stain (optical density, base 10) is multiplied by 1 +- sigma and shifted by +- bias.
    """

    sigma: tuple[float, float, float] = (0.05, 0.05, 0.05)
    bias: tuple[float, float, float] = (0.02, 0.02, 0.02)
    p: float = 0.0


@dataclass
class JpegSection:
    """`crops.jpeg`: compress the tile again, at a quality drawn from a range; off at p = 0."""

    quality: tuple[int, int] = (50, 95)
    p: float = 0.0


@dataclass
class CropsSection:
    """`crops`: DINOv2's multi-crop and the augmentations of each crop.

    `blur_p` and `solarize_p` are the real probabilities for (global crop 1, global crop 2, local crops).
    """

    global_crops_scale: tuple[float, float] = (0.32, 1.0)
    local_crops_number: int = 8
    local_crops_scale: tuple[float, float] = (0.05, 0.32)
    global_crops_size: int = 256
    local_crops_size: int = 112
    horizontal_flip_p: float = 0.5
    vertical_flip_p: float = 0.0
    rotate90_p: float = 0.0
    hed_jitter: HedJitterSection = field(default_factory=HedJitterSection)
    jpeg: JpegSection = field(default_factory=JpegSection)
    color_jitter: JitterSection = field(default_factory=JitterSection)
    grayscale_p: float = 0.2
    blur_p: tuple[float, float, float] = (0.0, 0.9, 0.5)
    blur_kernel: int = 9
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_p: tuple[float, float, float] = (0.0, 0.0, 0.0)
    normalize: NormalizeSection = field(default_factory=NormalizeSection)


@dataclass
class EvaluationSection:
    """`evaluation`: how often the teacher is exported, and the input size (px) it is to be evaluated at."""

    eval_period_iterations: int = 12500
    input_size: int | None = None  # None: crops.global_crops_size


@dataclass
class SSLConfig:
    """A whole training configuration."""

    MODEL: ModelSection = field(default_factory=ModelSection)
    compute_precision: PrecisionSection = field(default_factory=PrecisionSection)
    dino: DinoSection = field(default_factory=DinoSection)
    ibot: IbotSection = field(default_factory=IbotSection)
    train: TrainSection = field(default_factory=TrainSection)
    data: DataSection = field(default_factory=DataSection)
    student: StudentSection = field(default_factory=StudentSection)
    teacher: TeacherSection = field(default_factory=TeacherSection)
    optim: OptimSection = field(default_factory=OptimSection)
    crops: CropsSection = field(default_factory=CropsSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    kernels: KernelsSection = field(default_factory=KernelsSection)
    parallel: ParallelSection = field(default_factory=ParallelSection)
