"""NaN in a run: skipped while it is rare, then a stop with a step that can be computed again."""

import json
import logging
from dataclasses import replace
from itertools import count

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from dinov2.distributed.training_state import host_copy
from dinov2.train.divergence import WINDOW, SkipBudget, describe, first_bad_rank
from dinov2.train.feed import BatchFeed
from dinov2.train.step import StepReport, TrainStep
from dinov2.train.train import main
from dinov2.train.trainer import Trainer
from dinov2.utils.errors import DivergenceError


class PoisonedTrainer(Trainer):
    """Some of its steps get an image with a NaN in it."""

    poisoned: frozenset = frozenset()

    def _batches(self, start):
        for number, batch in zip(count(start * self.plan.accumulate), super()._batches(start), strict=False):
            if number // self.plan.accumulate in self.poisoned:
                crops = batch.global_crops.clone()
                crops[1, 0, 5, 5] = float("nan")
                batch = replace(batch, global_crops=crops)
            yield batch


def poisoned(config, folder, steps):
    trainer = PoisonedTrainer(config, folder)
    trainer.poisoned = frozenset(steps)
    return trainer


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@given(st.sets(st.integers(0, 1000)), st.integers(0, 5))
def test_the_budget_is_of_any_window(steps, allowed):
    budget = SkipBudget(allowed)
    seen = []
    for step in sorted(steps):
        seen.append(step)
        assert budget.spend(step) == (sum(s > step - WINDOW for s in seen) <= allowed)


def report(bad):
    return StepReport(numbers={}, bad=bad, overflow=False, applied=False, failed_ranks=[], stop_code=0)


def test_parts_and_ranks_are_named():
    nan = float("nan")
    assert describe(report({"ibot_loss": {0: nan}}), 1) == "ibot_loss = nan"
    found = {"ibot_loss": {3: nan, 5: nan}, "koleo_loss": dict.fromkeys(range(8), -nan), "grad_norm_backbone": {0: nan}}
    text = describe(report(found), 8)
    assert text == "ibot_loss = nan on rank 3, 5, koleo_loss = nan on all ranks, grad_norm_backbone = nan"
    assert first_bad_rank(report({"ibot_loss": {3: nan, 5: nan}, "grad_norm_backbone": {0: nan}})) == 3
    assert first_bad_rank(report({"grad_norm_backbone": {0: nan, 1: nan}})) == 0


def test_a_rare_nan_is_skipped_and_training_goes_on(small, tmp_path, caplog):
    run = tmp_path / "run"
    before = {}

    class Watching(PoisonedTrainer):
        def _skip(self, step, *rest):
            super()._skip(step, *rest)
            before.update({name: p.clone() for name, p in self.arch.student.named_parameters()})

    trainer = Watching(small(train={"max_steps": 5}), run)
    trainer.poisoned = frozenset({4})
    with caplog.at_level(logging.WARNING):
        assert trainer.run() == 0
    assert "step 4: dino_global_crops_loss = nan" in caplog.text
    assert "skipped" in caplog.text
    rows = lines(run)
    assert [row["iteration"] for row in rows] == list(range(5))
    assert rows[4]["total_loss"] is None
    assert rows[3]["total_loss"] > 0
    assert all(torch.equal(before[name], p) for name, p in trainer.arch.student.named_parameters())
    assert all(torch.isfinite(p).all() for p in trainer.arch.parameters())


@pytest.mark.parametrize("centering", ["sinkhorn_knopp", "centering"])
def test_a_skipped_step_leaves_no_trace(small, tmp_path, centering):
    trainer = poisoned(small(train={"centering": centering, "max_steps": 6}), tmp_path / "run", {2})
    assert trainer.run() == 0
    assert all(torch.isfinite(value).all() for value in trainer.arch.state_dict().values())
    assert all(row["total_loss"] is not None for row in lines(tmp_path / "run") if row["iteration"] != 2)


def test_too_many_stop_the_run_and_the_step_can_be_computed_again(small, tmp_path, capsys):
    run = tmp_path / "run"
    student = {"arch": "vit12", "embed_dim": 32, "num_heads": 2, "depth": 2, "drop_path_rate": 0.2}
    config = small(student=student, train={"max_skipped_steps": 1, "global_batch_size": 4, "batch_size_per_gpu": 2})
    trainer = poisoned(config, run, {3, 4})
    with pytest.raises(DivergenceError, match=r"step 4: dino_global_crops_loss = nan.*max_skipped_steps = 1") as caught:
        trainer.run()
    path = run / "diverged" / "4" / "rank0.pt"
    assert f"--replay {path}" in str(caught.value)
    assert trainer.checkpointer.iterations() == [2, 4]  # 4 is from before the step

    content = torch.load(path, weights_only=True)
    assert len(content["micro_batches"]) == 2
    assert all(name.endswith(".png") for batch in content["micro_batches"] for name in batch["paths"])
    assert main(["--replay", str(path)]) == 1
    out = capsys.readouterr().out
    assert "crops: global_crops of" in out
    assert "first module with a non-finite output: " in out
    assert "patch_embed" in out
    assert "gradient of" in out

    # The same step with a clean batch gives the losses that the run would have had.
    for batch in content["micro_batches"]:
        batch["global_crops"].nan_to_num_(0.0)
    torch.save(content, path)
    assert main(["--replay", str(path)]) == 0
    assert "all losses and gradients are finite here" in capsys.readouterr().out


def test_replay_repeats_the_losses_of_the_run(small, tmp_path, capsys, monkeypatch):
    """The state and the generators before the step are part of what is kept: here, which paths were dropped."""
    student = {"arch": "vit12", "embed_dim": 32, "num_heads": 2, "depth": 2, "drop_path_rate": 0.5}
    whole, calls = TrainStep._report, count()

    def failing_at_step_3(self, tensors, feed):
        found = whole(self, tensors, feed)
        return replace(found, bad={"koleo_loss": {0: 1.0}}, applied=False) if next(calls) == 3 else found

    monkeypatch.setattr(TrainStep, "_report", failing_at_step_3)
    with pytest.raises(DivergenceError):
        Trainer(small(student=student, train={"max_skipped_steps": 0}), tmp_path / "run").run()
    path = tmp_path / "run" / "diverged" / "3" / "rank0.pt"
    logged = torch.load(path, weights_only=True)["numbers"]
    assert main(["--replay", str(path)]) == 0
    printed = dict(
        part.rsplit(" ", 1) for part in capsys.readouterr().out.split("micro-batch 0: ")[1].split("\n")[0].split(", ")
    )
    assert {name: float(value) for name, value in printed.items()} == {
        name: pytest.approx(logged[name], rel=1e-5) for name in printed
    }


def test_a_weight_that_is_nan_is_named(small, tmp_path, capsys):
    trainer = Trainer(small(train={"max_skipped_steps": 0}), tmp_path / "run")
    with torch.no_grad():
        trainer.arch.student["ibot_head"].mlp[0].weight.fill_(float("nan"))
    before = {name: p.clone() for name, p in trainer.arch.student["backbone"].named_parameters()}
    with pytest.raises(DivergenceError, match=r"step 0: ibot_loss = nan"):
        trainer.run()
    assert all(torch.equal(before[name], p) for name, p in trainer.arch.student["backbone"].named_parameters())
    assert not (tmp_path / "run" / "teacher.safetensors").exists()
    assert main(["--replay", str(tmp_path / "run" / "diverged" / "0" / "rank0.pt"), "train.num_threads=1"]) == 1
    assert "weight of student.ibot_head.mlp.0.weight" in capsys.readouterr().out


def test_replay_of_a_state_from_elsewhere_executes_nothing(small, tmp_path, capsys):
    with pytest.raises(DivergenceError):
        poisoned(small(train={"max_skipped_steps": 0}), tmp_path / "run", {0}).run()
    path = tmp_path / "run" / "diverged" / "0" / "rank0.pt"
    executed = tmp_path / "executed"
    contents = path.parent / "state" / ".metadata"
    contents.write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % str(executed).encode())
    assert main(["--replay", str(path)]) == 2
    assert "names os.system" in capsys.readouterr().err
    assert not executed.exists()


@pytest.mark.parametrize("sections", [{"train": {"centering": "centering"}}, {"compute_precision": {"dtype": "fp16"}}])
def test_a_step_that_is_not_taken_leaves_everything_as_it_was(small, tmp_path, sections):
    """Parameters, moments, centres, scale and generators, whether taken before or not."""
    student = {"arch": "vit12", "embed_dim": 32, "num_heads": 2, "depth": 2, "drop_path_rate": 0.3}
    trainer = poisoned(small(student=student, **sections), tmp_path / "run", {1})
    feed = BatchFeed(trainer._batches(0))
    if scaler := trainer.state.scaler.state_dict():
        trainer.state.scaler.load_state_dict(scaler | {"scale": 1.0})
    trainer.step(feed, trainer.schedules.at(3))
    before = tree_leaves(host_copy(trainer.state.tensors(1)))
    report = trainer.step(feed, trainer.schedules.at(3))
    assert report.bad
    after = tree_leaves(trainer.state.tensors(1))
    assert len(before) == len(after) > 20
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_step_that_cannot_be_kept_is_reported_all_the_same(small, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    trainer = poisoned(small(train={"max_skipped_steps": 0}), tmp_path / "run", {0})
    with pytest.raises(DivergenceError, match=r"step 0: .* could not be kept \(OSError: .*No space left"):
        trainer.run()


def test_replay_of_something_else(tmp_path, capsys):
    (tmp_path / "other.pt").write_bytes(b"no checkpoint")
    for name, words in (("none.pt", "no such file"), ("other.pt", "is no captured step")):
        assert main(["--replay", str(tmp_path / name)]) == 2
        assert words in capsys.readouterr().err
    torch.save({"format": "x"}, tmp_path / "other.pt")
    assert main(["--replay", str(tmp_path / "other.pt")]) == 2
