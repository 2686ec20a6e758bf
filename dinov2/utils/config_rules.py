"""Rules between the keys of a configuration: what the types alone cannot tell."""

from dinov2.models.factory import spec_from_student
from dinov2.models.spec import SpecError
from dinov2.utils.schema import SSLConfig


def combination_problems(config: SSLConfig) -> list[str]:
    """Return one line for every value that cannot work: key, value, rule, nearest valid value."""
    return [*_crop_problems(config), *_backbone_problems(config), *_range_problems(config)]


def _crop_problems(config: SSLConfig) -> list[str]:
    patch = config.student.patch_size
    if patch < 1:
        return []  # the spec reports it
    sizes = {
        "crops.global_crops_size": config.crops.global_crops_size,
        "crops.local_crops_size": config.crops.local_crops_size,
        "evaluation.input_size": config.evaluation.input_size,
    }
    return [
        f"{key} = {size}: must be a positive multiple of student.patch_size = {patch}; the nearest is "
        f"{max(round(size / patch), 1) * patch}"
        for key, size in sizes.items()
        if size is not None and (size < patch or size % patch)
    ]


def _backbone_problems(config: SSLConfig) -> list[str]:
    try:
        spec_from_student(config.student, config.crops.global_crops_size)
    except SpecError as error:
        ssm = vars(config.student.ssm)
        return [
            f"student.{'ssm.' * (field in ssm)}{field} = {value!r}: {text}"
            for field, (value, text) in error.problems.items()
        ]
    except ValueError as error:
        return [f"student.arch = {config.student.arch!r}: {error}"]
    return []


def _range_problems(config: SSLConfig) -> list[str]:
    crops, ibot, train, optim = config.crops, config.ibot, config.train, config.optim
    unit = {
        "ibot.mask_sample_probability": (ibot.mask_sample_probability,),
        "ibot.mask_ratio_min_max": ibot.mask_ratio_min_max,
        "crops.global_crops_scale": crops.global_crops_scale,
        "crops.local_crops_scale": crops.local_crops_scale,
        "crops.horizontal_flip_p": (crops.horizontal_flip_p,),
        "crops.vertical_flip_p": (crops.vertical_flip_p,),
        "crops.rotate90_p": (crops.rotate90_p,),
        "crops.hed_jitter.p": (crops.hed_jitter.p,),
        "crops.hed_jitter.sigma": crops.hed_jitter.sigma,
        "crops.hed_jitter.bias": crops.hed_jitter.bias,
        "crops.jpeg.p": (crops.jpeg.p,),
        "crops.color_jitter.p": (crops.color_jitter.p,),
        "crops.grayscale_p": (crops.grayscale_p,),
        "crops.blur_p": crops.blur_p,
        "crops.solarize_p": crops.solarize_p,
        "teacher.momentum_teacher": (config.teacher.momentum_teacher,),
        "teacher.final_momentum_teacher": (config.teacher.final_momentum_teacher,),
        "data.max_bad_fraction": (config.data.max_bad_fraction,),
    }
    positive = {
        "train.batch_size_per_gpu": train.batch_size_per_gpu,
        "train.OFFICIAL_EPOCH_LENGTH": train.OFFICIAL_EPOCH_LENGTH,
        "train.checkpoint_period_iterations": train.checkpoint_period_iterations,
        "train.log_period_iterations": train.log_period_iterations,
        "train.saveckp_freq": train.saveckp_freq,
        "train.keep_last_checkpoints": train.keep_last_checkpoints,
        "optim.epochs": optim.epochs,
        "dino.head_n_prototypes": config.dino.head_n_prototypes,
        "ibot.head_n_prototypes": ibot.head_n_prototypes,
        "dino.head_nlayers": config.dino.head_nlayers,
        "ibot.head_nlayers": ibot.head_nlayers,
        "teacher.teacher_temp": config.teacher.teacher_temp,
        "teacher.warmup_teacher_temp": config.teacher.warmup_teacher_temp,
        "dino.head_hidden_dim": config.dino.head_hidden_dim,
        "ibot.head_hidden_dim": ibot.head_hidden_dim,
        "dino.head_bottleneck_dim": config.dino.head_bottleneck_dim,
        "ibot.head_bottleneck_dim": ibot.head_bottleneck_dim,
        "optim.layerwise_decay": optim.layerwise_decay,
        "crops.global_crops_scale": crops.global_crops_scale[0],
        "crops.local_crops_scale": crops.local_crops_scale[0],
        "crops.blur_sigma": crops.blur_sigma[0],
        "evaluation.eval_period_iterations": config.evaluation.eval_period_iterations,
        "crops.normalize.std": min(crops.normalize.std),
        "parallel.timeout_minutes": config.parallel.timeout_minutes,
    }
    not_negative = {
        "train.num_workers": train.num_workers,
        "train.max_skipped_steps": train.max_skipped_steps,
        "train.stop_before_minutes": train.stop_before_minutes,
        "crops.local_crops_number": crops.local_crops_number,
        "optim.warmup_epochs": optim.warmup_epochs,
        "optim.freeze_last_layer_epochs": optim.freeze_last_layer_epochs,
        "optim.base_lr": optim.base_lr,
        "optim.clip_grad": optim.clip_grad,
        "optim.min_lr": optim.min_lr,
        "optim.patch_embed_lr_mult": optim.patch_embed_lr_mult,
        "optim.weight_decay": optim.weight_decay,
        "optim.weight_decay_end": optim.weight_decay_end,
        "teacher.warmup_teacher_temp_epochs": config.teacher.warmup_teacher_temp_epochs,
        "dino.loss_weight": config.dino.loss_weight,
        "dino.koleo_loss_weight": config.dino.koleo_loss_weight,
        "ibot.loss_weight": ibot.loss_weight,
        "crops.color_jitter.brightness": crops.color_jitter.brightness,
        "crops.color_jitter.contrast": crops.color_jitter.contrast,
        "crops.color_jitter.saturation": crops.color_jitter.saturation,
        "crops.color_jitter.hue": crops.color_jitter.hue,
    }
    optional = {
        "train.num_threads": train.num_threads,
        "train.global_batch_size": train.global_batch_size,
        "train.max_steps": train.max_steps,
        "optim.total_steps": optim.total_steps,
        "optim.accumulate_steps": optim.accumulate_steps,
    }
    positive |= {key: value for key, value in optional.items() if value is not None}
    problems = [
        f"{key} = {list(values) if len(values) > 1 else values[0]}: must lie in [0, 1]"
        for key, values in unit.items()
        if any(not 0 <= value <= 1 for value in values)
    ]
    problems += [f"{key} = {value}: must be positive" for key, value in positive.items() if value <= 0]
    problems += [f"{key} = {value}: must not be negative" for key, value in not_negative.items() if value < 0]
    for key, (low, high) in {
        "ibot.mask_ratio_min_max": ibot.mask_ratio_min_max,
        "crops.global_crops_scale": crops.global_crops_scale,
        "crops.local_crops_scale": crops.local_crops_scale,
        "crops.blur_sigma": crops.blur_sigma,
        "crops.jpeg.quality": crops.jpeg.quality,
    }.items():
        if low > high:
            problems.append(f"{key} = {[low, high]}: the first must not exceed the second; did you mean {[high, low]}?")
    warmup = optim.warmup_epochs * train.OFFICIAL_EPOCH_LENGTH
    if optim.total_steps is None and optim.warmup_epochs > optim.epochs:
        problems.append(f"optim.warmup_epochs = {optim.warmup_epochs}: must not exceed optim.epochs = {optim.epochs}")
    elif optim.total_steps is not None and warmup > optim.total_steps:
        problems.append(
            f"optim.warmup_epochs = {optim.warmup_epochs}: {warmup} steps (train.OFFICIAL_EPOCH_LENGTH = "
            f"{train.OFFICIAL_EPOCH_LENGTH}) must not exceed optim.total_steps = {optim.total_steps}"
        )
    for key, beta in {"optim.adamw_beta1": optim.adamw_beta1, "optim.adamw_beta2": optim.adamw_beta2}.items():
        if not 0 <= beta < 1:
            problems.append(f"{key} = {beta}: must lie in [0, 1)")
    if any(not 1 <= quality <= 100 for quality in crops.jpeg.quality):
        problems.append(f"crops.jpeg.quality = {list(crops.jpeg.quality)}: both must lie in 1 .. 100")
    if crops.color_jitter.hue > 0.5:
        problems.append(f"crops.color_jitter.hue = {crops.color_jitter.hue}: must not exceed 0.5")
    smallest = min(crops.global_crops_size, crops.local_crops_size if crops.local_crops_number else 10**9)
    if 0 < smallest <= crops.blur_kernel // 2:
        problems.append(
            f"crops.blur_kernel = {crops.blur_kernel}: must be below twice the smallest crop, {smallest} px"
        )
    if crops.blur_kernel < 1 or crops.blur_kernel % 2 == 0:
        problems.append(f"crops.blur_kernel = {crops.blur_kernel}: must be odd; the nearest is {crops.blur_kernel + 1}")
    return problems
