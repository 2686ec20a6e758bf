"""Reading configurations: defaults, the shipped files, overrides, and errors that list everything at once."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dinov2.models import get_spec
from dinov2.utils.config import ConfigError, config_from_dict, config_to_dict, differing_keys, load_config, to_yaml
from dinov2.utils.schema import SSLConfig

CONFIGS = Path(__file__).parents[2] / "configs"
SIX = ("vit12", "vit24", "vim_einfft", "hydra_einfft", "hydra_hybrid", "mvhybrid")

PAPER = {
    "crops.global_crops_size": 256,
    "crops.local_crops_size": 112,
    "crops.local_crops_number": 8,
    "crops.global_crops_scale": (0.32, 1.0),
    "crops.local_crops_scale": (0.05, 0.32),
    "crops.color_jitter.brightness": 0.2,
    "crops.color_jitter.contrast": 0.2,
    "crops.color_jitter.saturation": 0.2,
    "crops.color_jitter.hue": 0.1,
    "crops.color_jitter.p": 0.8,
    "crops.grayscale_p": 0.2,
    "crops.blur_kernel": 9,
    "crops.blur_sigma": (0.1, 2.0),
    "crops.blur_p": (0.0, 0.9, 0.5),
    "crops.solarize_p": (0.0, 0.0, 0.0),
    "crops.normalize.mean": (0.70322989, 0.53606487, 0.66096631),
    "crops.normalize.std": (0.21716536, 0.26081574, 0.20723464),
    "train.centering": "sinkhorn_knopp",
    "train.OFFICIAL_EPOCH_LENGTH": 493,
    "train.global_batch_size": 1536,
    "student.patch_size": 16,
    "student.drop_path_rate": 0.0,
    "dino.head_n_prototypes": 65536,
    "dino.head_bottleneck_dim": 256,
    "dino.koleo_loss_weight": 0.1,
    "ibot.separate_head": True,
    "ibot.head_n_prototypes": 65536,
    "ibot.head_bottleneck_dim": 256,
    "ibot.mask_sample_probability": 0.5,
    "ibot.mask_ratio_min_max": (0.1, 0.5),
    "teacher.momentum_teacher": 0.992,
    "teacher.final_momentum_teacher": 1.0,
    "teacher.warmup_teacher_temp": 0.04,
    "teacher.teacher_temp": 0.06,
    "teacher.warmup_teacher_temp_epochs": 30,
    "optim.base_lr": 0.002,
    "optim.scaling_rule": "sqrt_wrt_1024",
    "optim.weight_decay": 0.04,
    "optim.weight_decay_end": 0.4,
    "optim.layerwise_decay": 1.0,
    "optim.clip_grad": 3.0,
    "optim.epochs": 200,
    "optim.warmup_epochs": 10,
    "optim.min_lr": 1e-6,
    "optim.freeze_last_layer_epochs": 1,
    "optim.patch_embed_lr_mult": 0.2,
}


def look_up(config, dotted):
    for part in dotted.split("."):
        config = getattr(config, part)
    return config


def write(folder, text):
    (folder / "c.yaml").write_text(text)
    return folder / "c.yaml"


def problems(*args):
    """The lines of the error that a configuration gives, without the heading."""
    with pytest.raises(ConfigError) as error:
        load_config(*args) if isinstance(args[0], Path) else config_from_dict(*args)
    heading, *lines = str(error.value).split("\n  ")
    assert heading == f"the configuration has {len(lines)} problem{'s' * (len(lines) > 1)}:"
    return lines


def test_the_default_file_lists_every_key_with_the_schemas_default():
    written = OmegaConf.to_container(OmegaConf.load(CONFIGS / "ssl_default_config.yaml"))
    assert differing_keys(written, config_to_dict(SSLConfig())) == {}
    assert load_config(CONFIGS / "ssl_default_config.yaml") == SSLConfig()


@pytest.mark.parametrize("path", sorted((CONFIGS / "train").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_loads_without_a_warning(path, caplog):
    load_config(path)
    assert not caplog.records


@pytest.mark.parametrize("name", SIX)
def test_the_six_files_hold_the_papers_recipe(name):
    config = load_config(CONFIGS / "train" / f"{name}.yaml")
    assert {key: look_up(config, key) for key in PAPER} == PAPER
    assert config.student.arch == name
    # Nothing about the backbone itself is changed.
    assert [config.student.embed_dim, config.student.depth, config.student.layerscale, config.student.blocks] == [
        None
    ] * 4
    assert get_spec(config.student.arch).name == name


def test_overrides_win_and_are_typed(tmp_path):
    path = write(tmp_path, "optim: {epochs: 3, warmup_epochs: 1}\ntrain: {dataset_path: 'Folder:root=a'}")
    config = load_config(
        path,
        ["optim.epochs=7", "optim.base_lr=1e-3", "train.dataset_path=Folder:root=b", "crops.blur_p=[0,1,0.5]",
         "student.depth=null", "ibot.separate_head=false", "crops.color_jitter.p=1"],
    )  # fmt: skip
    assert config.optim.epochs == 7
    assert config.optim.warmup_epochs == 1
    assert config.optim.base_lr == 0.001
    assert config.train.dataset_path == "Folder:root=b"
    assert config.crops.blur_p == (0.0, 1.0, 0.5)
    assert config.student.depth is None
    assert config.ibot.separate_head is False
    assert config.crops.color_jitter.p == 1.0
    assert isinstance(config.crops.color_jitter.p, float)


@pytest.mark.parametrize("override", ["optim.epochs", "--optim.epochs=3"])
def test_an_override_of_another_form_is_named(tmp_path, override):
    with pytest.raises(ConfigError, match=f"must be written section.key=value; got '{override}'"):
        load_config(write(tmp_path, "{}"), [override])


def test_an_override_can_be_wrong_too(tmp_path):
    (line,) = problems(write(tmp_path, "{}"), ["optim.epoch=3"])
    assert line == "optim.epoch = 3: unknown key; did you mean 'epochs'?"


def test_everything_wrong_is_listed_at_once(tmp_path):
    path = write(
        tmp_path,
        """
studnet: {arch: vit12}
optim: {base_lrr: 0.1, epochs: many, clip_grad: true}
train: {OFFICIAL_EPOCH_LENGTH: 1.5, centering: sinkhorn}
crops: {global_crops_size: 250, local_crops_size: 100, color_jitter: {hues: 1}}
dino: {head_nlayers: 0}
student: {embed_dim: 100, num_heads: 7}
""",
    )
    lines = problems(path)
    for expected in (
        "studnet: unknown key; did you mean 'student'?",
        "optim.base_lrr = 0.1: unknown key; did you mean 'base_lr'?",
        "optim.epochs = 'many': expected an integer",
        "optim.clip_grad = True: expected a number",
        "train.OFFICIAL_EPOCH_LENGTH = 1.5: expected an integer",
        "train.centering = 'sinkhorn': expected one of centering, sinkhorn_knopp; did you mean 'sinkhorn_knopp'?",
        "crops.color_jitter.hues = 1: unknown key; did you mean 'hue'?",
        "dino.head_nlayers = 0: must be positive",
    ):
        assert any(line.startswith(expected) for line in lines), (expected, lines)
    assert any(line.startswith("student.num_heads = 7: 7 heads do not divide the width 100") for line in lines)
    for size in ("global_crops_size = 250", "local_crops_size = 100"):
        assert any(line.startswith(f"crops.{size}: must be a positive multiple") for line in lines)


def test_a_key_in_the_wrong_section_is_shown_its_place():
    (line,) = problems({"train": {"epochs": 3}})
    assert line.startswith("train.epochs = 3: unknown key")
    assert line.endswith("(there is optim.epochs)")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"optim": {"epochs": True}}, "optim.epochs = True: expected an integer"),
        ({"optim": {"base_lr": "fast"}}, "optim.base_lr = 'fast': expected a number"),
        ({"optim": {"base_lr": float("nan")}}, "optim.base_lr = nan: expected a number"),
        ({"optim": {"clip_grad": float("inf")}}, "optim.clip_grad = inf: expected a number"),
        ({"ibot": {"separate_head": 1}}, "ibot.separate_head = 1: expected true or false"),
        ({"crops": {"blur_p": [0.1, 0.2]}}, "crops.blur_p = [0.1, 0.2]: expected a list of 3 numbers"),
        ({"crops": {"blur_p": 0.5}}, "crops.blur_p = 0.5: expected a list of 3 numbers"),
        (
            {"student": {"blocks": "1 x attention + mlp"}},
            "student.blocks = '1 x attention + mlp': expected a list of texts or null",
        ),
        ({"student": {"depth": "12"}}, "student.depth = '12': expected an integer or null"),
        (
            {"student": {"size": "tinny"}},
            "student.size = 'tinny': expected one of tiny, small, base or null; did you mean",
        ),
        ({"train": {"dataset_path": None}}, "train.dataset_path = None: expected a text"),
        ({"train": 3}, "train = 3: expected a section of keys"),
        ({"crops": {"normalize": [0.5, 0.5]}}, "crops.normalize = [0.5, 0.5]: expected a section of keys"),
    ],
)
def test_a_wrong_type_is_named_with_its_value_and_what_is_expected(values, expected):
    (line,) = problems(values)
    assert line.startswith(expected)


def test_an_empty_section_is_the_default():
    assert config_from_dict({"train": None, "crops": {"color_jitter": None}}) == SSLConfig()


def test_yaml_round_trip(tmp_path):
    config = load_config(
        CONFIGS / "train" / "tiny_cpu.yaml", ["student.blocks=['1 x vim + mlp']", "student.depth=null"]
    )
    assert load_config(write(tmp_path, to_yaml(config))) == config
    assert config_from_dict(config_to_dict(config)) == config


def test_differing_keys():
    ours = {"a": 1, "b": {"c": [1, 2], "d": 3}, "only": 1}
    theirs = {"a": 1, "b": {"c": [1, 3], "d": 3}, "new": {"x": 1}}
    assert differing_keys(ours, theirs) == {"b.c": ([1, 2], [1, 3]), "only": (1, None), "new": (None, {"x": 1})}


def test_a_missing_file_offers_the_nearest():
    with pytest.raises(ConfigError, match=r"mvhybird\.yaml' does not exist; did you mean 'mvhybrid\.yaml'"):
        load_config(CONFIGS / "train" / "mvhybird.yaml")


@pytest.mark.parametrize("text", ["a: [1", "a: ${nowhere}", "\ttabs: 1"])
def test_a_file_that_is_not_yaml(tmp_path, text):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(write(tmp_path, text))


def test_a_file_without_sections(tmp_path):
    with pytest.raises(ConfigError, match="must hold sections of keys"):
        load_config(write(tmp_path, "- 1\n- 2\n"))


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00\x80" * 9)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "c.yaml")
