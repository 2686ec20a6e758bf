"""What several processes cannot do: one says so, all end with code 2, and nothing is written."""

import pytest
import torch
from processes import run_ranks

from dinov2.distributed.parallelize import resolve_strategy
from dinov2.train.train import main
from dinov2.utils.config import to_yaml
from dinov2.utils.devices import device_type
from dinov2.utils.errors import ConfigError


@pytest.fixture
def command(small, tmp_path):
    """Arguments of `python -m dinov2.train` for two steps of four images, into the folder `run`."""
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(small(train={"max_steps": 2, "global_batch_size": 4})))
    return ["--config-file", str(path), "--output-dir", str(tmp_path / "run")]


def refused(command, tmp_path):
    """Run two processes that are to fail; return what the first says for both."""
    codes, (first, second) = run_ranks(main, 2, [command], tmp_path)
    assert codes == [2, 2], first + second
    assert "Traceback" not in first + second
    assert "error:" not in second
    return first


@pytest.mark.parametrize("strategy", ["auto", "none", "ddp", "fsdp", "hsdp"])
def test_one_process_has_nothing_to_share(strategy):
    """A configuration for a cluster also trains on a laptop."""
    assert resolve_strategy(strategy, 1, [1]) == "none"


@pytest.mark.parametrize(
    ("processes", "sizes", "expected"),
    [(8, [8], "fsdp"), (2, [2], "fsdp"), (16, [8], "hsdp"), (4, [2], "hsdp"), (3, [1], "ddp"), (12, [4, 8], "ddp")],
)
def test_what_auto_means(processes, sizes, expected):
    assert resolve_strategy("auto", processes, sizes) == expected
    for strategy in ("ddp", "fsdp"):
        assert resolve_strategy(strategy, processes, sizes) == strategy


def test_hsdp_needs_equal_nodes():
    assert resolve_strategy("hsdp", 8, [8]) == resolve_strategy("hsdp", 2, [1]) == "hsdp"
    with pytest.raises(ConfigError, match="hsdp: some nodes have 4 processes, others 8; start as many on every node"):
        resolve_strategy("hsdp", 12, [4, 8])


def test_processes_that_share_nothing(command, tmp_path):
    expected = (
        "parallel.strategy = none: 2 processes were started, each would train a model of its own; "
        "use auto, ddp, fsdp or hsdp"
    )
    assert f"error: {expected}\n" in refused([*command, "parallel.strategy=none"], tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide(command, tmp_path):
    expected = "train.global_batch_size = 7: not divisible by 2 processes; the nearest is 8"
    assert f"error: {expected}\n" in refused([*command, "train.global_batch_size=7"], tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_configuration(command, tmp_path):
    run = tmp_path / "run"
    assert main(command) == 0
    checkpoints = {path.name for path in (run / "checkpoints").iterdir()}
    before = (run / "config.yaml").read_text()
    other = [*command, "optim.base_lr=0.1", "teacher.teacher_temp=0.05", "train.max_steps=4"]
    output = refused(other, tmp_path)
    assert f"error: output folder {str(run)!r} holds a run of another configuration:" in output
    assert "optim.base_lr: 0.002 there, 0.1 here" in output
    assert "teacher.teacher_temp: 0.06 there, 0.05 here" in output
    assert "max_steps" not in output  # may differ
    assert "give another --output-dir, or --force to go on with the new values" in output
    assert (run / "config.yaml").read_text() == before
    assert {path.name for path in (run / "checkpoints").iterdir()} == checkpoints
    assert main([*other, "--force"]) == 0
    assert "base_lr: 0.1" in (run / "config.yaml").read_text()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4


def test_cuda_without_a_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError) as caught:
        device_type("cuda")
    assert str(caught.value) == "train.device = cuda: this machine has no usable CUDA device; use auto or cpu"
    assert device_type("auto") == "cpu"
