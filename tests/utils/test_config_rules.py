"""Combinations of values that cannot work: each is named with its value and the nearest valid one."""

import pytest

from dinov2.models.official import IMAGENET
from dinov2.utils.config import ConfigError, config_from_dict, config_to_dict

MULTIPLE = "must be a positive multiple of student.patch_size = 16; the nearest is"


def lines_of(values):
    with pytest.raises(ConfigError) as error:
        config_from_dict(values)
    return str(error.value).split("\n  ")[1:]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"crops": {"local_crops_size": 100}}, f"crops.local_crops_size = 100: {MULTIPLE} 96"),
        ({"crops": {"global_crops_size": 0}}, f"crops.global_crops_size = 0: {MULTIPLE} 16"),
        ({"evaluation": {"input_size": 225}}, f"evaluation.input_size = 225: {MULTIPLE} 224"),
        ({"student": {"patch_size": 0}}, "student.patch_size = 0: must be at least 1"),
        ({"student": {"num_heads": 5}}, "student.num_heads = 5: 5 heads do not divide the width 384"),
        (
            {"student": {"depth": 7}},
            "student.depth = 7: the blocks come in the proportion 12:12; the nearest valid depth is",
        ),
        ({"student": {"arch": "vit13"}}, "student.arch = 'vit13': unknown backbone 'vit13'; did you mean 'vit12'"),
        (
            {"student": {"blocks": ["2 x atention + mlp"]}},
            "student.blocks = ['2 x atention + mlp']: "
            "unknown mixer 'atention' in '2 x atention + mlp'; did you mean 'attention'",
        ),
        ({"student": {"ssm": {"d_state": 0}}}, "student.ssm.d_state = 0: must be positive"),
        ({"student": {"drop_path_rate": 1.0}}, "student.drop_path_rate = 1.0: must lie in [0, 1)"),
        ({"ibot": {"mask_sample_probability": 1.5}}, "ibot.mask_sample_probability = 1.5: must lie in [0, 1]"),
        ({"crops": {"blur_p": [0, 2, 0]}}, "crops.blur_p = [0.0, 2.0, 0.0]: must lie in [0, 1]"),
        ({"crops": {"normalize": {"std": [0.2, 0.0, 0.2]}}}, "crops.normalize.std = 0.0: must be positive"),
        ({"crops": {"hed_jitter": {"p": 1.1}}}, "crops.hed_jitter.p = 1.1: must lie in [0, 1]"),
        (
            {"crops": {"hed_jitter": {"sigma": [0.1, -0.1, 0]}}},
            "crops.hed_jitter.sigma = [0.1, -0.1, 0.0]: must lie in [0, 1]",
        ),
        ({"crops": {"rotate90_p": -0.5}}, "crops.rotate90_p = -0.5: must lie in [0, 1]"),
        ({"crops": {"jpeg": {"quality": [0, 90]}}}, "crops.jpeg.quality = [0, 90]: both must lie in 1 .. 100"),
        (
            {"crops": {"jpeg": {"quality": [90, 50]}}},
            "crops.jpeg.quality = [90, 50]: the first must not exceed the second; did you mean [50, 90]?",
        ),
        (
            {"crops": {"normalize": "imagnet"}},
            "crops.normalize = 'imagnet': no known name; did you mean 'imagenet'? (known: lunit, imagenet)",
        ),
        ({"train": {"stop_before_minutes": -1}}, "train.stop_before_minutes = -1.0: must not be negative"),
        ({"parallel": {"timeout_minutes": 0}}, "parallel.timeout_minutes = 0.0: must be positive"),
        ({"data": {"augment": "gpu"}}, "data.augment = 'gpu': expected one of auto, device, worker"),
        ({"crops": {"blur_kernel": 8}}, "crops.blur_kernel = 8: must be odd; the nearest is 9"),
        (
            {"crops": {"global_crops_scale": [1.0, 0.32]}},
            "crops.global_crops_scale = [1.0, 0.32]: the first must not exceed the second; did you mean [0.32, 1.0]?",
        ),
        ({"optim": {"epochs": 5}}, "optim.warmup_epochs = 10: must not exceed optim.epochs = 5"),
        ({"train": {"global_batch_size": 0}}, "train.global_batch_size = 0: must be positive"),
        ({"train": {"max_steps": -1}}, "train.max_steps = -1: must be positive"),
        ({"train": {"num_workers": -1}}, "train.num_workers = -1: must not be negative"),
        ({"optim": {"clip_grad": -1}}, "optim.clip_grad = -1.0: must not be negative"),
    ],
)
def test_one_impossible_value(values, expected):
    (line,) = lines_of(values)
    assert line.startswith(expected)


def test_several_are_listed_together():
    lines = lines_of(
        {
            "student": {"arch": "hydra_hybrid", "embed_dim": 100, "num_heads": 7},
            "crops": {"local_crops_size": 100},
            "train": {"batch_size_per_gpu": 0},
        }
    )
    starts = [
        "crops.local_crops_size = 100",
        "student.num_heads = 7",
        "student.embed_dim = 100",
        "train.batch_size_per_gpu = 0",
    ]
    assert [any(line.startswith(start) for line in lines) for start in starts] == [True] * 4
    assert len(lines) == 4


@pytest.mark.parametrize(
    "values",
    [
        {"crops": {"local_crops_number": 0}},
        {"optim": {"clip_grad": 0, "freeze_last_layer_epochs": 0}},
        {"student": {"patch_size": 14}, "crops": {"global_crops_size": 224, "local_crops_size": 98}},
        {"student": {"num_heads": 5, "blocks": ["4 x mamba_vision + einfft"]}},
    ],
)
def test_what_works_is_accepted(values):
    config_from_dict(values)


def test_normalisation_by_name():
    config = config_from_dict({"crops": {"normalize": "imagenet"}})
    assert vars(config.crops.normalize) == {key: tuple(values) for key, values in IMAGENET.items()}
    assert config_from_dict(config_to_dict(config)) == config  # the run keeps the numbers, not the name
    assert config_from_dict({"crops": {"normalize": "lunit"}}) == config_from_dict({})
