"""A run of a second or two, for tests of everything that trains: its configuration and its tiles."""

import numpy as np
from PIL import Image

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


def write_tiles(folder):
    """Make a folder of twelve smooth random tiles, and return it."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        low = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(low).resize((72, 72), Image.BICUBIC).save(folder / f"{i:02d}.png")
    return folder
