"""Several processes compute what one does: the same losses and parameters from the same global batch, in float64."""

import json

import compile_ranks
import pytest
import torch
import train_ranks
from processes import run_ranks

from dinov2.utils.config import to_yaml

BACKBONES = ("vit12", "vit24", "vim_einfft", "hydra_einfft", "hydra_hybrid", "mvhybrid")


@pytest.fixture
def write(small, tmp_path):
    """Return a function that writes a configuration of eight images a step for a run folder, and gives its path."""

    def write(folder, steps, train=None, **sections):
        train = (train or {}) | {
            "output_dir": str(folder),
            "batch_size_per_gpu": 8,
            "global_batch_size": 8,
            "max_steps": steps,
            "OFFICIAL_EPOCH_LENGTH": 10,
            "checkpoint_period_iterations": 10,
        }
        path = tmp_path / f"{folder.name}-{steps}.yaml"
        path.write_text(to_yaml(small(train=train, **sections)))
        return path

    return write


def train(processes, configs, per_node=None, program=train_ranks.main):
    codes, outputs = run_ranks(program, processes, list(map(str, configs)), configs[0].parent, per_node)
    assert codes == [0] * processes, "\n".join(outputs)


def results(folder):
    """Return the losses and gradient norms of every step, and the final state."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [{k: v for k, v in line.items() if "loss" in k or "norm" in k} for line in lines]
    return losses, torch.load(folder / "final.pt", weights_only=True)


def assert_same(folder, expected_folder):
    (found, state), (expected, expected_state) = results(folder), results(expected_folder)
    assert len(found) == len(expected) > 1
    assert expected[0]["total_loss"] != expected[-1]["total_loss"]
    for step, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-9), f"{folder.name}, step {step}"
    assert state.keys() == expected_state.keys()
    for name, tensor in expected_state.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-6, msg=f"{folder.name}: {name}")


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same(write, tmp_path):
    """All six backbones, 20 steps: 1 process, 2 and 4 with DDP and with FSDP."""
    launches = ("one", 1, "none"), ("ddp2", 2, "ddp"), ("ddp4", 4, "ddp"), ("fsdp2", 2, "fsdp"), ("fsdp4", 4, "fsdp")
    check_equivalence(launches, dict.fromkeys(BACKBONES, 20), write, tmp_path)


def test_two_processes_give_the_same(write, tmp_path):
    """All six backbones, two steps; five for two that have every kind of block between them."""
    launches = ("one", 1, "none"), ("ddp2", 2, "ddp"), ("fsdp2", 2, "fsdp")
    check_equivalence(launches, dict.fromkeys(BACKBONES, 2) | {"hydra_hybrid": 5, "mvhybrid": 5}, write, tmp_path)


def check_equivalence(launches, steps, write, tmp_path):
    """Train each backbone for its number of steps in each launch, of which the first is the one to be equal to."""
    for name, processes, strategy in launches:
        folders = {arch: tmp_path / f"{name}-{arch}" for arch in steps}
        parallel = {"strategy": strategy}
        train(
            processes,
            [write(folders[arch], steps[arch], student={"arch": arch}, parallel=parallel) for arch in steps],
        )
        for arch, folder in folders.items():
            assert_same(folder, tmp_path / f"one-{arch}")


def test_two_processes_give_the_same_with_each_way_to_targets_and_with_accumulation(write, tmp_path):
    """Moving centres, one head for both losses, and two micro-batches a step, with DDP and with FSDP."""
    variants = {
        "centering": {"train": {"centering": "centering"}},
        "shared": {"ibot": {"separate_head": False}},
        "accumulated": {"optim": {"accumulate_steps": 2}},
    }
    launches = (("one", 1, train_ranks.like_two), ("ddp", 2, train_ranks.main), ("fsdp", 2, train_ranks.main))
    for name, processes, program in launches:
        parallel = {"strategy": "none" if name == "one" else name}
        configs = [
            write(tmp_path / f"{name}-{variant}", 3, student={"arch": "vit12"}, parallel=parallel, **sections)
            for variant, sections in variants.items()
        ]
        train(processes, configs, program=program)
        for variant in variants:
            assert_same(tmp_path / f"{name}-{variant}", tmp_path / f"one-{variant}")
    states = {variant: results(tmp_path / f"one-{variant}")[1] for variant in variants}
    centers = {"centers.dino.center", "centers.ibot.center"}  # part of what was compared
    assert centers <= states["centering"].keys()
    assert all(states["centering"][name].abs().max() > 0 for name in centers)
    assert not any("ibot_head" in name for name in states["shared"])
    assert any("ibot_head" in name for name in states["centering"])
    losses = [results(tmp_path / f"one-{variant}")[0][0]["total_loss"] for variant in variants]
    assert len(set(losses)) == len(losses)  # each does something else


@pytest.mark.parametrize(
    ("before", "after"),
    [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow), pytest.param(2, 4, marks=pytest.mark.slow)],
)
def test_a_run_goes_on_with_another_number_of_processes(before, after, write, tmp_path):
    """Three steps, then three more from the checkpoint, give what six in one go give."""
    whole, split = tmp_path / "whole", tmp_path / "split"
    train(1, [write(whole, 6)])
    train(before, [write(split, 3)])
    train(after, [write(split, 6)])
    assert_same(split, whole)


def test_two_processes_go_on_as_if_never_stopped(write, tmp_path):
    """Three steps and three more are six in one go, bit by bit, though each process drops other paths in each step."""
    student = {"arch": "vit12", "drop_path_rate": 0.3}
    configs = [
        write(tmp_path / f"{name}-{strategy}", steps, student=student, parallel={"strategy": strategy})
        for strategy in ("ddp", "fsdp")
        for name, steps in (("whole", 6), ("split", 3), ("split", 6))
    ]
    train(2, configs)
    for strategy in ("ddp", "fsdp"):
        (found, state), (expected, expected_state) = (
            results(tmp_path / f"{name}-{strategy}") for name in ("split", "whole")
        )
        assert len(found) == 6
        assert found == expected
        assert state.keys() == expected_state.keys()
        for name, tensor in expected_state.items():
            assert torch.equal(state[name], tensor), f"{strategy}: {name}"


@pytest.mark.slow
def test_options_of_the_parallel_section_change_nothing(write, tmp_path):
    """Two nodes of two processes, activation checkpointing, gathered parameters kept: the same losses."""
    train(1, [write(tmp_path / "one", 5)])
    options = {"strategy": "auto", "activation_checkpointing": True, "reshard_after_forward": False}
    train(4, [write(tmp_path / "hsdp", 5, parallel=options)], per_node=2)
    assert_same(tmp_path / "hsdp", tmp_path / "one")
    assert json.loads((tmp_path / "hsdp" / "run.json").read_text())["strategy"] == "hsdp"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "backend", "checkpointing"),
    [("vit12", "inductor", True), ("mvhybrid", "aot_eager", True), ("mvhybrid", "aot_eager", False)],
)
def test_compiled_blocks_are_what_they_were(arch, backend, checkpointing, write, tmp_path):
    """Packs of two sizes, masked patches in ever different numbers, student and teacher: all of it stays compiled."""
    train(1, [write(tmp_path / "eager", 4, student={"arch": arch})])
    parallel = {"strategy": "fsdp", "compile": True, "activation_checkpointing": checkpointing}
    config = write(tmp_path / "compiled", 4, student={"arch": arch}, parallel=parallel)
    codes, outputs = run_ranks(compile_ranks.main, 2, [backend, str(config)], tmp_path)
    assert codes == [0, 0], "\n".join(outputs)
    assert_same(tmp_path / "compiled", tmp_path / "eager")
    counters = json.loads(outputs[0].splitlines()[-1])
    assert 4 < counters["frames"]["ok"] < 40
    if arch == "vit12":  # which has no units inside its blocks
        assert counters["graph_break"] == {}


@pytest.mark.slow
def test_every_block_is_compiled_where_each_drops_paths_at_another_rate(write, tmp_path):
    student = {"arch": "vit12", "depth": 12, "drop_path_rate": 0.3, "drop_path_uniform": False}
    config = write(tmp_path / "run", 2, student=student, parallel={"compile": True})
    codes, outputs = run_ranks(compile_ranks.main, 1, ["aot_eager", str(config)], tmp_path)
    assert codes == [0], "\n".join(outputs)
    assert json.loads(outputs[0].splitlines()[-1])["frames"]["ok"] > 12
