"""What one rank alone finds wrong before there is a process group is said, by it or for all, and ends them all."""

import odd_ranks
import pytest
from processes import run_ranks

from dinov2.utils.config import to_yaml


@pytest.fixture
def run(small, tmp_path):
    """Return a function that trains in two processes, one of them with a misfortune: their outputs."""
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(small()))

    def run(misfortune, *overrides):
        command = ["--config-file", str(path), "--output-dir", str(tmp_path / "run"), *overrides]
        codes, outputs = run_ranks(odd_ranks.main, 2, [misfortune, command], tmp_path)
        assert codes[1] == 2, "\n".join(outputs)
        assert not (tmp_path / "run").exists()
        return codes[0], *outputs

    return run


def test_a_node_without_a_driver_does_not_train_on_its_cpu(run):
    code, first, second = run("driver", "train.device=auto")
    assert code == 2
    assert "error: train.device = auto: rank 0 of 2 on " in first
    assert " found cuda, but rank 1 of 2 on " in first
    assert " found cpu; " in first
    assert "error" not in second  # rank 0 has said it


def test_a_device_that_one_rank_lacks_is_missed_by_all(run):
    code, first, second = run("driver", "train.device=cuda")
    assert code == 2
    assert "error: rank 1 of 2 on " in first
    assert "train.device = cuda: this machine has no usable CUDA device" in first
    assert "error" not in second


def test_more_processes_than_devices_are_refused_by_all(run):
    code, first, second = run("devices", "train.device=cuda")
    assert code == 2
    assert "2 processes on this node, but 1 CUDA devices" in first
    assert "error" not in second


def test_a_file_that_one_rank_does_not_see_is_named_by_it(run):
    code, _, second = run("file", "parallel.timeout_minutes=0.05")
    assert code == 1  # it has waited for three seconds
    assert "error (rank 1 of 2 on " in second
    assert "config.yaml.elsewhere' does not exist" in second
