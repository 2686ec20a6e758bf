"""The training loop: resuming, stopping, accumulating, and what a run leaves behind."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dinov2.data.errors import DatasetError, TooManyBadTilesError
from dinov2.distributed import training_state
from dinov2.models.weights import load_backbone
from dinov2.ops.dispatch import usable_backends
from dinov2.train.feed import BatchFeed
from dinov2.train.interrupt import StopRequest
from dinov2.train.train import main
from dinov2.train.trainer import Trainer
from dinov2.utils.config import to_yaml
from dinov2.utils.errors import CheckpointError, ConfigError, RunFolderError

TIMES = ("data_seconds", "step_seconds", "images_per_second")


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def weights(folder):
    return load_file(folder / "teacher.safetensors")


@pytest.mark.parametrize("arch", ["mvhybrid", "vit12", "hydra_hybrid"])
def test_resumed_run_equals_uninterrupted_run(small, tmp_path, arch):
    student = {"arch": arch, "embed_dim": 32, "num_heads": 2, "depth": 2, "drop_path_rate": 0.3}
    assert Trainer(small(student=student), tmp_path / "whole").run() == 0
    for steps in (3, None):  # stops between two periodic checkpoints
        assert Trainer(small(student=student, train={"max_steps": steps}), tmp_path / "parts").run() == 0
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert [line["iteration"] for line in metrics(tmp_path / "whole")] == list(range(8))
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_softmax_centres_are_part_of_the_checkpoint(small, tmp_path):
    def config(steps):
        return small(train={"centering": "centering", "max_steps": steps})

    Trainer(config(6), tmp_path / "whole").run()
    for steps in (3, 6):
        Trainer(config(steps), tmp_path / "parts").run()
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_training_lowers_the_loss_and_moves_the_teacher(small, tmp_path):
    config = small(
        optim={"epochs": 30, "warmup_epochs": 1, "base_lr": 0.05, "freeze_last_layer_epochs": 0},
        teacher={"warmup_teacher_temp_epochs": 0, "momentum_teacher": 0.9},
        dino={"head_n_prototypes": 32, "head_hidden_dim": 32, "head_bottleneck_dim": 16, "koleo_loss_weight": 0.0},
    )
    trainer = Trainer(config, tmp_path / "run")
    before = {name: p.clone() for name, p in trainer.arch.teacher.named_parameters()}
    trainer.run()
    losses = [line["total_loss"] for line in metrics(tmp_path / "run")]
    assert sum(losses[-10:]) < 0.97 * sum(losses[:10])
    moved = [not torch.equal(before[name], p) for name, p in trainer.arch.teacher.named_parameters()]
    assert sum(moved) > 0.9 * len(moved)


def test_run_folder_holds_what_it_should(small, tmp_path):
    run = tmp_path / "run"
    Trainer(small(train={"keep_last_checkpoints": 1, "saveckp_freq": 2}), run).run()
    assert {"config.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "teacher.safetensors", "run.json"} <= {
        path.name for path in run.iterdir()
    }
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        "4",
        "8",
        "latest",
    }  # every second epoch, the last
    assert (run / "checkpoints" / "latest" / "teacher.safetensors").samefile(run / "teacher.safetensors")
    info = json.loads((run / "run.json").read_text())
    assert usable_backends("selective_scan")[0] in info["kernels"]["selective_scan"]
    assert (
        info["versions"]["torch"] == torch.__version__.split("+")[0] or info["versions"]["torch"] == torch.__version__
    )
    line = metrics(run)[0]
    assert {"dino_global_crops_loss", "dino_local_crops_loss", "koleo_loss", "ibot_loss", "total_loss", "lr"} <= set(
        line
    )
    parts = sum(line[key] for key in line if key.endswith("_loss") and key != "total_loss")
    assert math.isclose(parts, line["total_loss"], rel_tol=1e-5)


def test_checkpoint_moved_alone_keeps_its_normalisation_and_size(small, tmp_path):
    config = small(evaluation={"input_size": 96})
    config.crops.normalize.mean = (0.1, 0.2, 0.3)
    config.train.max_steps = 1
    Trainer(config, tmp_path / "run").run()
    moved = tmp_path / "elsewhere" / "renamed.safetensors"
    moved.parent.mkdir()
    (tmp_path / "run" / "teacher.safetensors").rename(moved)
    loaded = load_backbone(moved)
    assert loaded.mean == (0.1, 0.2, 0.3)
    assert loaded.input_size == 96
    same = load_backbone(tmp_path / "run" / "checkpoints" / "1")
    assert same.weights_hash == loaded.weights_hash


def test_accumulated_gradients_equal_those_of_their_mean(small, tmp_path):
    """Without the parts that look across the batch, two micro-batches give the gradient of the whole batch."""
    sections = {
        "dino": {"head_n_prototypes": 32, "head_hidden_dim": 32, "head_bottleneck_dim": 16, "koleo_loss_weight": 0.0},
        "optim": {"epochs": 4, "warmup_epochs": 0, "clip_grad": 0.0, "freeze_last_layer_epochs": 0},
    }

    def grads(micro, name):
        train = {"global_batch_size": 4, "batch_size_per_gpu": micro, "centering": "centering"}
        trainer = Trainer(small(train=train, **sections), tmp_path / name)
        for center in trainer.arch.centers.values():
            center.momentum = 1.0  # else it moves between the micro-batches
        trainer.step(BatchFeed(trainer._batches(0)), trainer.schedules.at(0))
        return [p.grad for p in trainer.arch.student.parameters()]

    for whole, halves in zip(grads(4, "whole"), grads(2, "halves"), strict=True):
        torch.testing.assert_close(halves, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()) + 1e-7)


def test_clipping_is_per_module(small, tmp_path):
    trainer = Trainer(small(optim={"epochs": 4, "warmup_epochs": 0, "clip_grad": 1e-3}), tmp_path / "run")
    trainer.step(BatchFeed(trainer._batches(0)), trainer.schedules.at(0))
    for module in trainer.arch.student.values():
        norm = torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm()
        assert norm == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_the_same_command_goes_on(small, tmp_path, number):
    config = small(optim={"epochs": 400}, train={"checkpoint_period_iterations": 10**6, "num_workers": 1})
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    run = tmp_path / "run"
    command = [sys.executable, "-m", "dinov2.train", "--config-file", str(path), "--output-dir", str(run)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not ((run / "metrics.jsonl").is_file() and len((run / "metrics.jsonl").read_text().splitlines()) >= 2):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    saved = [int(folder.name) for folder in (run / "checkpoints").iterdir() if folder.name != "latest"]
    assert len(saved) == 1
    assert len(metrics(run)) == saved[0]
    config.train.max_steps = saved[0] + 1
    assert Trainer(config, run).run() == 0
    assert [line["iteration"] for line in metrics(run)] == list(range(saved[0] + 1))


def test_damaged_newest_checkpoint_is_named_and_the_one_before_used(small, tmp_path, caplog):
    run = tmp_path / "run"
    Trainer(small(), run).run()
    for file in (run / "checkpoints" / "8").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(small(), run)
        assert trainer.checkpointer.restore(trainer.state) == 6
    assert str(run / "checkpoints" / "8") in caplog.text
    assert (run / "checkpoints" / "8.damaged").is_dir()
    assert trainer.run() == 0  # writes a new one in its place
    assert Trainer(small(), run).checkpointer.restore(trainer.state) == 8
    for iteration in trainer.checkpointer.iterations():
        (run / "checkpoints" / str(iteration) / ".metadata").write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the run's checkpoints"):
        trainer.checkpointer.restore(trainer.state)


def test_checkpoint_of_another_architecture_names_the_keys_and_changes_nothing(small, tmp_path):
    run = tmp_path / "run"
    Trainer(small(train={"max_steps": 2}), run).run()
    before = (run / "config.yaml").read_text()
    student = {"arch": "vit12", "embed_dim": 32, "num_heads": 2, "depth": 2}
    with pytest.raises(CheckpointError) as caught:
        Trainer(small(student=student), run, force=True).run()
    assert "missing student.backbone.pos_embed" in str(caught.value)
    assert "more" in str(caught.value)
    assert (run / "config.yaml").read_text() == before
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"2", "latest"}
    assert Trainer(small(train={"max_steps": 3}), run).run() == 0


def test_micro_batches_are_the_global_batch(small, tmp_path):
    whole = Trainer(small(train={"global_batch_size": 4, "batch_size_per_gpu": 4}), tmp_path / "a")._loader(1)
    parts = Trainer(small(train={"global_batch_size": 4, "batch_size_per_gpu": 2}), tmp_path / "b")._loader(1)
    batch, (first, second) = next(iter(whole)), islice(parts, 2)
    joined = torch.stack([first.global_crops.unflatten(0, (2, 2)), second.global_crops.unflatten(0, (2, 2))], dim=1)
    assert torch.equal(joined.flatten(0, 2), batch.global_crops)
    masks = torch.stack([first.masks.unflatten(0, (2, 2)), second.masks.unflatten(0, (2, 2))], dim=1)
    assert torch.equal(masks.flatten(0, 2), batch.masks)


def test_folder_of_another_run_is_refused(small, tmp_path):
    run = tmp_path / "run"
    config = small(train={"max_steps": 1})
    Trainer(config, run).run()
    other = small(optim={"epochs": 4, "warmup_epochs": 1, "base_lr": 0.1})
    with pytest.raises(RunFolderError, match=r"optim\.base_lr: 0\.002 there, 0\.1 here"):
        Trainer(other, run)
    assert Trainer(other, run, force=True).run() == 0
    assert "base_lr: 0.1" in (run / "config.yaml").read_text()
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "thesis.tex").write_text("")
    with pytest.raises(RunFolderError, match=r"thesis\.tex"):
        Trainer(config, stranger)
    assert [path.name for path in stranger.iterdir()] == ["thesis.tex"]


def test_truncated_tile_is_skipped_and_many_stop_the_run(small, tiles, tmp_path, caplog):
    bad = tiles / "03.png"
    bad.write_bytes(bad.read_bytes()[:200])
    config = small(data={"max_bad_fraction": 0.1})
    with caplog.at_level(logging.WARNING):
        assert Trainer(config, tmp_path / "run").run() == 0
    assert str(bad) in caplog.text
    for name in ("00", "01", "02", "04", "05"):
        (tiles / f"{name}.png").write_bytes(b"")
    with pytest.raises(TooManyBadTilesError, match=r"data\.max_bad_fraction"):
        Trainer(config, tmp_path / "many").run()


def test_bad_folders_and_devices(small, tmp_path):
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(DatasetError, match=root.name):
            Trainer(small(train={"dataset_path": f"Folder:root={root}"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"train\.device"):
            Trainer(small(train={"device": "cuda"}), tmp_path / "run")


def test_pretrained_weights_start_student_and_teacher(small, tmp_path):
    config = small(train={"max_steps": 1})
    Trainer(config, tmp_path / "first").run()
    source = str(tmp_path / "first")
    student = {"arch": "mvhybrid", "embed_dim": 32, "num_heads": 2, "depth": 2, "pretrained_weights": source}
    trainer = Trainer(small(student=student), tmp_path / "second")
    expected = weights(tmp_path / "first")
    for modules in (trainer.arch.student, trainer.arch.teacher):
        state = modules["backbone"].state_dict()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
    with pytest.raises(CheckpointError, match="does not fit"):
        Trainer(small(student={**student, "arch": "vit12"}), tmp_path / "third")


def test_command_line_reports_errors_without_traceback(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text("student: {arch: mvhybird}\n")
    assert main(["--config-file", str(path), "--output-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "mvhybird" in error
    assert "'mvhybrid'" in error
    assert not Path(tmp_path / "run").exists()
    assert main(["--config-file", str(path), "--output-dir", str(tmp_path / "run"), "student.arch=vit12"]) == 2
    assert "train.dataset_path is not set" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "examples:" in capsys.readouterr().out


def test_run_begun_without_a_cuda_generator_goes_on_with_one(small, tmp_path, monkeypatch):
    run = tmp_path / "run"
    Trainer(small(train={"max_steps": 2}), run).run()
    trainer = Trainer(small(), run)
    states = {"cpu": torch.get_rng_state(), "cuda": torch.zeros(16, dtype=torch.uint8)}
    monkeypatch.setattr(training_state, "rng_state", lambda device: dict(states))
    assert trainer.checkpointer.restore(trainer.state) == 2


def test_a_parameter_without_a_gradient_is_no_obstacle_to_resuming(small, tmp_path):
    """Without iBOT the mask token is never used, and the optimiser knows nothing of it."""
    ibot = {"loss_weight": 0.0}

    def config(steps):
        return small(ibot=ibot, train={"max_steps": steps})

    Trainer(config(6), tmp_path / "whole").run()
    for steps in (3, 6):
        Trainer(config(steps), tmp_path / "parts").run()
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert not (tmp_path / "parts" / "checkpoints" / "3.damaged").exists()


def test_a_stop_before_the_first_step_is_no_obstacle_either(small, tmp_path):
    Trainer(small(train={"max_steps": 3}), tmp_path / "whole").run()
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert Trainer(small(train={"max_steps": 3}), tmp_path / "parts").run(stop) == 143
    assert (tmp_path / "parts" / "checkpoints" / "0").is_dir()
    Trainer(small(train={"max_steps": 3}), tmp_path / "parts").run()
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_a_deadline_before_the_first_step_ends_the_run_with_its_state_saved(small, tmp_path, monkeypatch):
    """A job that went back to the queue then would come back to the same."""
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JOB_START_TIME", str(time.time() - 600))
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 300))
    monkeypatch.setattr("dinov2.train.trainer.requeue_if_slurm", None)
    trainer = Trainer(small(train={"stop_before_minutes": 6}), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"stop_before_minutes = 6: that moment came before a step could be taken"):
        trainer.run()
    assert trainer.checkpointer.iterations() == [0]
