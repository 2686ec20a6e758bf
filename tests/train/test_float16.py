"""float16 with a scaled loss: small gradients survive, large ones halve the scale and skip the step."""

import json

import pytest
import torch

from dinov2.train.feed import BatchFeed
from dinov2.train.precision import Precision
from dinov2.train.trainer import Trainer

CPU = torch.device("cpu")
VIT = {"arch": "vit12", "embed_dim": 32, "num_heads": 2, "depth": 2}


def weighted(loss_weight):
    """Small heads, whose bottleneck is so small at first that gradients are in the thousands."""
    head = {"head_n_prototypes": 32, "head_hidden_dim": 32, "head_bottleneck_dim": 16, "loss_weight": loss_weight}
    return {"dino": head | {"koleo_loss_weight": 0.0}, "ibot": head | {"mask_sample_probability": 1.0}}


def test_names():
    assert Precision.from_name("auto", CPU).dtype == torch.float32
    assert Precision.from_name("auto", torch.device("cuda")).dtype == torch.bfloat16
    assert Precision.from_name("fp32", CPU).lowered is None
    assert str(Precision.from_name("fp16", CPU)) == "float16"
    assert [Precision.from_name(name, CPU).scaler().is_enabled() for name in ("fp32", "bf16", "fp16")] == [0, 0, 1]


def test_scaled_gradients_are_those_of_float32(small, tmp_path):
    """A loss so small that float16 would round its gradients to zero."""

    def norms(name):
        optim = {"epochs": 4, "warmup_epochs": 0, "freeze_last_layer_epochs": 0}
        config = small(compute_precision={"dtype": name}, student=VIT, optim=optim, **weighted(1e-5))
        trainer = Trainer(config, tmp_path / name)
        report = trainer.step(BatchFeed(trainer._batches(0)), trainer.schedules.at(0))
        assert report.applied
        return report.numbers

    half, single = norms("fp16"), norms("fp32")
    assert half["loss_scale"] == 65536
    assert "loss_scale" not in single
    for name in ("grad_norm_backbone", "grad_norm_dino_head", "grad_norm_ibot_head"):
        assert half[name] == pytest.approx(single[name], rel=0.05)
        assert single[name] > 0


def test_overflow_halves_the_scale_changes_nothing_and_is_no_divergence(small, tmp_path):
    config = small(compute_precision={"dtype": "fp16"}, student=VIT, train={"max_skipped_steps": 0, "max_steps": 3})
    trainer = Trainer(config, tmp_path / "run")
    trainer.state.scaler.load_state_dict(trainer.state.scaler.state_dict() | {"scale": 2.0**60})
    before = [p.clone() for p in trainer.arch.parameters()]
    assert trainer.run() == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss_scale"] for row in rows] == [2.0**60, 2.0**59, 2.0**58]
    assert all(row["grad_norm_backbone"] is None and row["total_loss"] > 0 for row in rows)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.arch.parameters(), strict=True))


@pytest.mark.parametrize("arch", ["mvhybrid", "vim_einfft"])
def test_float16_trains_and_its_scale_is_part_of_the_checkpoint(small, tmp_path, arch):
    def config(steps):
        student = {"arch": arch, "embed_dim": 32, "num_heads": 2, "depth": 2}
        return small(compute_precision={"dtype": "fp16"}, student=student, train={"max_steps": steps}, **weighted(1e-3))

    first = Trainer(config(2), tmp_path / "run")
    first.state.scaler.load_state_dict(first.state.scaler.state_dict() | {"scale": 512.0, "_growth_tracker": 7})
    assert first.run() == 0
    second = Trainer(config(4), tmp_path / "run")
    assert second.checkpointer.restore(second.state) == 2
    assert second.state.scaler.get_scale() == 512.0
    assert second.state.scaler.state_dict()["_growth_tracker"] == 9
    assert second.run() == 0
    # A checkpoint without a scaler, and a run without one: both go on.
    student = {"arch": arch, "embed_dim": 32, "num_heads": 2, "depth": 2}
    other = small(student=student, train={"max_steps": 6}, **weighted(1e-3))
    assert Trainer(other, tmp_path / "run", force=True).run() == 0
    third = Trainer(config(8), tmp_path / "run", force=True)
    assert third.run() == 0
