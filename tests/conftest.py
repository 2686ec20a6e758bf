"""What all tests share: one thread, since several on shared cores are slower than one, and a run of a second or two."""

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2.utils.config import config_from_dict

torch.set_num_threads(1)

SMALL = {
    "train": {
        "batch_size_per_gpu": 4,
        "OFFICIAL_EPOCH_LENGTH": 2,
        "num_workers": 0,
        "checkpoint_period_iterations": 2,
        "device": "cpu",
        "num_threads": 1,
    },
    "student": {"arch": "mvhybrid", "embed_dim": 32, "num_heads": 2, "depth": 2},
    "crops": {"global_crops_size": 64, "local_crops_size": 32, "local_crops_number": 2},
    "dino": {"head_n_prototypes": 32, "head_hidden_dim": 32, "head_bottleneck_dim": 16},
    "ibot": {"head_n_prototypes": 32, "head_hidden_dim": 32, "head_bottleneck_dim": 16, "mask_sample_probability": 1.0},
    "optim": {"epochs": 4, "warmup_epochs": 1},
    "teacher": {"warmup_teacher_temp_epochs": 2},
}


@pytest.fixture
def tiles(tmp_path):
    """A folder of twelve smooth random tiles."""
    return write_tiles(tmp_path / "tiles")


def write_tiles(folder):
    """Make the folder of the fixture `tiles`."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        low = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(low).resize((72, 72), Image.BICUBIC).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def small(tiles):
    """Return a function from overrides (nested dictionaries) to the small configuration."""

    def make(**sections):
        values = {key: dict(section) for key, section in SMALL.items()}
        values["train"]["dataset_path"] = f"Folder:root={tiles}"
        for key, section in sections.items():
            values[key] = values.get(key, {}) | section
        return config_from_dict(values)

    return make
