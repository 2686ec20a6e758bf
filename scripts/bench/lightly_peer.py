"""lightly-train's DINOv2, one training step for every line on stdin: run by train_step.py in an environment of its own.

  PYTHON scripts/bench/lightly_peer.py '{"model": "dinov2/vits14", "batch": 8, ...}'

PyTorch Lightning runs the loop, as it does in lightly-train. Its data set is one batch of noise that it is handed again
whenever a line arrives, so that the time from a line to the answer is that of a whole step, log included. Nothing of
this project is imported.
"""

import json
import os
import sys
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

READY = "ready"


class Requests(Dataset[dict[str, Any]]):
    """Says that the last step is over, waits for the next line, and gives the batch; the program ends with stdin."""

    def __init__(self, batch: dict[str, Any], answers: Any) -> None:
        self.batch, self.answers = batch, answers

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the batch."""
        print(READY, file=self.answers, flush=True)
        if not sys.stdin.readline():
            os._exit(0)  # Lightning has no other way out of the middle of an epoch
        return self.batch


def main() -> None:
    """Train until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer
    case = json.loads(sys.argv[1])
    torch.set_num_threads(case["threads"])
    import pytorch_lightning
    from lightly_train._methods.dinov2.dinov2 import DINOv2, DINOv2AdamWViTArgs, DINOv2Args
    from lightly_train._models.embedding_model import EmbeddingModel
    from lightly_train._models.package_helpers import get_wrapped_model

    torch.manual_seed(0)
    sizes = [case["global_size"]] * 2 + [case["local_size"]] * case["local_crops"]
    batch = {
        "filename": [""] * case["batch"],
        "views": [torch.randn(case["batch"], 3, size, size) for size in sizes],
    }
    model = get_wrapped_model(
        case["model"], num_input_channels=3, model_args={"drop_path_rate": case["drop_path"]}, load_weights=False
    )
    method = DINOv2(
        method_args=DINOv2Args(output_dim=case["prototypes"], weight_decay_start=0.04),
        optimizer_args=DINOv2AdamWViTArgs(),
        embedding_model=EmbeddingModel(model),
        global_batch_size=case["batch"],
        num_input_channels=3,
    )
    cuda = case["device"] == "cuda"
    trainer = pytorch_lightning.Trainer(
        accelerator="gpu" if cuda else "cpu",
        devices=1,
        precision="bf16-mixed" if case["dtype"] == "bf16" else "32-true",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, DataLoader(Requests(batch, answers), batch_size=None))


if __name__ == "__main__":
    main()
