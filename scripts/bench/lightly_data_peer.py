"""lightly-train's transform of its DINOv2 method on the same files for every line on stdin: run by data.py in an
environment of its own.

  PYTHON scripts/bench/lightly_data_peer.py '{"paths": [...], "global_size": 256, ...}'

Nothing of this project is imported.
"""

import json
import os
import sys
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

READY = "ready"


def make_transform(case: dict[str, Any]) -> Any:
    """Return the transform with the crops of a case."""
    from lightly_train._methods.dinov2.dinov2_transform import DINOv2ViTTransform
    from lightly_train._transforms.transform import NormalizeArgs

    arguments = DINOv2ViTTransform.transform_args_cls()()
    arguments.resolve_auto()
    arguments.resolve_incompatible()
    arguments.image_size = (case["global_size"], case["global_size"])
    arguments.normalize = NormalizeArgs(mean=case["mean"], std=case["std"])
    local = arguments.local_view
    local.num_views, local.view_size = case["local_crops"], (case["local_size"], case["local_size"])
    return DINOv2ViTTransform(arguments)


def read(path: str) -> np.ndarray:
    """Return an image file as RGB (H, W, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def stack(samples: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """Return global and local crops, crop-major."""
    rows = list(zip(*samples, strict=True))
    large, small = ([crop for row in part for crop in row] for part in (rows[:2], rows[2:]))
    return torch.stack(large), torch.stack(small)


def main() -> None:
    """Make a batch for every line until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer
    case = json.loads(sys.argv[1])
    torch.set_num_threads(case["threads"])
    transform, batch = make_transform(case), len(case["paths"])
    sizes = ((2 * batch, case["global_size"]), (case["local_crops"] * batch, case["local_size"]))
    print(READY, file=answers, flush=True)
    for _ in sys.stdin:
        made = stack([[view["image"] for view in transform({"image": read(path)})] for path in case["paths"]])
        for crops, (count, size) in zip(made, sizes, strict=True):
            if crops.shape != (count, 3, size, size):
                raise SystemExit(f"crops of shape {tuple(crops.shape)}, wanted {count} of {size} px")
        print(READY, file=answers, flush=True)


if __name__ == "__main__":
    main()
